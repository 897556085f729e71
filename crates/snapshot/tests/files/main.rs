//! Snapshots through a file and back, the files of others, and files that are none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod foreign;
mod hostile;
mod killed;
mod samples;
mod snapshot;

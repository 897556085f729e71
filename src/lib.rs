//! keyguard

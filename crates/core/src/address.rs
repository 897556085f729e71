//! What an address claimed: one window log for each path that its claims named, and one for claims without a path.

use crate::effect::Claimed;
use crate::path::Path;
use crate::window::WindowLog;

/// The most paths of one address. Where so many are counted, a claim of another path is refused until one runs out: a count that
/// is alive is never given up for another.
pub const MAX_PATHS: usize = 256;

/// The most bytes of paths of one address, which may be a stranger's: whoever has many addresses has no more memory than these.
pub const MAX_TEXT_BYTES: usize = 16 * 1024;

/// The first byte of [`AddressLogs::encode`].
const FORMAT: u8 = 1;

/// The window logs of an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressLogs {
    /// In order of the paths, so that equal states have equal bytes; the path of claims without one is empty.
    logs: Vec<(Box<str>, WindowLog)>,
}

impl AddressLogs {
    /// The log of a path.
    #[must_use]
    pub fn log(&self, path: Option<&Path<'_>>) -> Option<&WindowLog> {
        self.find(text(path)).ok().and_then(|index| self.logs.get(index)).map(|(_, log)| log)
    }

    /// Milliseconds until there may be room for the log of a path; 0 if there is.
    #[must_use]
    pub fn wait_for_room_ms(&self, path: Option<&Path<'_>>, at_ms: u64) -> u64 {
        if self.has_room(text(path)) {
            return 0;
        }
        // A log that is empty can go at once.
        let first = self.logs.iter().map(|(_, log)| log.expires_at_ms().unwrap_or(0)).min();
        first.map_or(0, |first| first.saturating_sub(at_ms))
    }

    /// Adds a claim: see [`WindowLog::push`]. Where a path finds no room, the logs that have run out make it; if none has, the claim
    /// is not booked, and no command of ours makes one.
    pub fn claim(&mut self, path: Option<&Path<'_>>, claimed: Claimed) {
        let name = text(path);
        if !self.has_room(name) {
            self.logs.retain(|(_, log)| log.expires_at_ms().is_some_and(|at_ms| at_ms > claimed.at_ms));
        }
        let index = match self.find(name) {
            Ok(index) => index,
            Err(_) if !self.has_room(name) => return,
            Err(index) => {
                // Most have one path only, and a vector would grow to four.
                self.logs.reserve_exact(1);
                self.logs.insert(index, (name.into(), WindowLog::default()));
                index
            }
        };
        if let Some((_, log)) = self.logs.get_mut(index) {
            log.push(claimed.at_ms, claimed.units, claimed.window_ms);
        }
    }

    /// Forgets the claims of a path. Whether there were any.
    pub fn clear(&mut self, path: &Path<'_>) -> bool {
        let found = self.find(path.as_str());
        found.map(|index| self.logs.remove(index)).is_ok()
    }

    /// How many logs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.logs.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// The logs, in order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &WindowLog)> {
        self.logs.iter().map(|(path, log)| (&**path, log))
    }

    /// Whether the log of a path is there, or may be added.
    fn has_room(&self, path: &str) -> bool {
        let text_bytes = || self.logs.iter().map(|(name, _)| name.len()).sum::<usize>();
        self.find(path).is_ok() || self.logs.len() < MAX_PATHS && text_bytes() + path.len() <= MAX_TEXT_BYTES
    }

    fn find(&self, path: &str) -> Result<usize, usize> {
        self.logs.binary_search_by(|(name, _)| (**name).cmp(path))
    }

    /// When the whole may be forgotten, in unix milliseconds.
    #[must_use]
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.logs.iter().filter_map(|(_, log)| log.expires_at_ms()).max()
    }

    /// How many separate allocations freeing costs.
    #[must_use]
    pub fn allocations(&self) -> usize {
        2 + self.logs.iter().map(|(_, log)| 1 + log.allocations()).sum::<usize>()
    }

    /// Bytes of memory held, the struct itself included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let beside = |(path, log): &(Box<str>, WindowLog)| path.len() + log.memory_bytes() - size_of::<WindowLog>();
        let logs = self.logs.capacity() * size_of::<(Box<str>, WindowLog)>();
        size_of::<Self>() + logs + self.logs.iter().map(beside).sum::<usize>()
    }

    /// The state as bytes that [`decode`](Self::decode) reads; equal states give equal bytes.
    ///
    /// `FORMAT, number of logs (2 bytes, big-endian), then for each: length (2 bytes) and path, length (4 bytes) and log`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&(self.logs.len() as u16).to_be_bytes());
        for (path, log) in &self.logs {
            out.extend_from_slice(&(path.len() as u16).to_be_bytes());
            out.extend_from_slice(path.as_bytes());
            let log = log.encode();
            out.extend_from_slice(&(log.len() as u32).to_be_bytes());
            out.extend_from_slice(&log);
        }
        out
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for any other bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[FORMAT, high, low], mut rest) = bytes.split_first_chunk()? else { return None };
        let count = usize::from(u16::from_be_bytes([high, low]));
        if count > MAX_PATHS {
            return None;
        }
        let mut all = Self::default();
        for _ in 0..count {
            let (&len, after) = rest.split_first_chunk::<2>()?;
            let (path, after) = after.split_at_checked(usize::from(u16::from_be_bytes(len)))?;
            let (&len, after) = after.split_first_chunk::<4>()?;
            let (log, after) = after.split_at_checked(u32::from_be_bytes(len) as usize)?;
            let path = str::from_utf8(path).ok()?;
            let sound = path.is_empty() || Path::from_canonical(path).is_some();
            if !sound || all.logs.last().is_some_and(|(last, _)| **last >= *path) {
                return None;
            }
            all.logs.push((path.into(), WindowLog::decode(log)?));
            rest = after;
        }
        rest.is_empty().then_some(all)
    }
}

fn text<'a>(path: Option<&'a Path<'_>>) -> &'a str {
    path.map_or("", Path::as_str)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;
    use crate::window::EXPIRY_SLACK_MS;

    const START_MS: u64 = 1_800_000_000_000;

    fn claimed(at_ms: u64, window_ms: u64) -> Claimed {
        Claimed { at_ms, units: 1, window_ms }
    }

    fn path(text: &str) -> Path<'_> {
        Path::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn each_path_is_counted_by_itself_and_so_are_claims_without() {
        let mut logs = AddressLogs::default();
        for (name, times) in [(Some("/login"), 3), (Some("/api"), 2), (None, 1)] {
            let path = name.map(path);
            (0..times).for_each(|n| logs.claim(path.as_ref(), claimed(START_MS + n, 60_000)));
        }
        let units = |path: Option<&str>| logs.log(path.map(self::path).as_ref()).map(WindowLog::units);
        assert_eq!([units(Some("/login/")), units(Some("/api")), units(None)], [Some(3), Some(2), Some(1)]);
        assert_eq!(units(Some("/")), None);
        assert_eq!(logs.expires_at_ms(), Some(START_MS + 2 + 60_000 + EXPIRY_SLACK_MS));
        assert!(logs.clear(&path("/login")));
        assert!(!logs.clear(&path("/login")));
        assert_eq!(logs.len(), 2);
    }

    #[test]
    fn a_count_that_is_alive_is_never_given_up_for_another() {
        let mut logs = AddressLogs::default();
        let names: Vec<String> = (0..MAX_PATHS).map(|index| format!("/{index}")).collect();
        for (index, name) in names.iter().enumerate() {
            logs.claim(Some(&path(name)), claimed(START_MS, 1_000 + index as u64));
        }
        let (new, known) = (path("/new"), path("/7"));
        let room_ms = START_MS + 1_000 + EXPIRY_SLACK_MS;
        assert_eq!(logs.wait_for_room_ms(Some(&new), START_MS), room_ms - START_MS);
        assert_eq!(logs.wait_for_room_ms(Some(&known), START_MS), 0);
        let before = logs.clone();
        logs.claim(Some(&new), claimed(room_ms - 1, 1_000));
        assert_eq!(logs, before);
        assert_eq!(logs.wait_for_room_ms(Some(&new), room_ms), 0);
        logs.claim(Some(&new), claimed(room_ms, 1_000));
        assert_eq!(logs.log(Some(&path("/0"))), None);
        assert_eq!((logs.len(), logs.log(Some(&new)).unwrap().units()), (MAX_PATHS, 1));
        assert_eq!(AddressLogs::decode(&logs.encode()), Some(logs));
    }

    #[test]
    fn long_paths_find_less_room() {
        let mut logs = AddressLogs::default();
        let long: Vec<String> = (0..20).map(|n| format!("/{n}{}", "x".repeat(1_000))).collect();
        for text in &long {
            logs.claim(Some(&path(text)), claimed(START_MS, 1_000));
        }
        assert_eq!(logs.len(), 16);
        assert!(logs.wait_for_room_ms(Some(&path(&long[19])), START_MS) > 0);
        assert_eq!(logs.wait_for_room_ms(Some(&path("/short")), START_MS), 0, "what is short still fits");
        assert_eq!(logs.wait_for_room_ms(Some(&path(&long[0])), START_MS), 0, "what is there stays");
        assert_eq!(AddressLogs::decode(&logs.encode()), Some(logs));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_other_bytes_never_panic(
            claims in prop::collection::vec((0usize..4, 0u64..5_000), 0..60),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut logs = AddressLogs::default();
            let mut now = START_MS;
            for (index, step) in claims {
                now += step;
                let path = ["/", "/a", "/a/b", ""][index];
                let path = (!path.is_empty()).then(|| self::path(path));
                logs.claim(path.as_ref(), claimed(now, 60_000));
            }
            let mut bytes = logs.encode();
            prop_assert_eq!(AddressLogs::decode(&bytes), Some(logs));
            if let Some((index, value)) = damage {
                let index = index.index(bytes.len());
                bytes[index] = value;
                if let Some(logs) = AddressLogs::decode(&bytes) {
                    let encoded = logs.encode();
                    prop_assert_eq!(AddressLogs::decode(&encoded), Some(logs));
                }
            }
        }

        #[test]
        fn decoding_is_total(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = AddressLogs::decode(&[&[FORMAT, 0, 1][..], &bytes].concat());
        }
    }
}

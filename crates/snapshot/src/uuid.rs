//! Ids for tables that want UUIDs, out of our own numbers and back.
//!
//! They are UUIDs of version 8, whose content is for whoever makes them (RFC 9562, section 5.8): 48 bits, the version, 12 bits, the
//! variant, 62 bits. A *tag* of 54 bits, the hash of the store's name, keeps those of different stores apart, and is no secret.
//!
//! ```text
//! organization, key   tag, its high 48 bits | 8 | kind 4, tag's low 6, id's high 2   | 2 | id, its low 62 bits
//! row of the log      unix milliseconds     | 8 | kind 4, code 4, no latency 1, 0 3  | 2 | tag's high 30 bits, seq 32
//! ```
//!
//! Both rise with what they count, so that an index on them grows at its end.

/// What a UUID is one of. The numbers are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An organization.
    Org = 1,
    /// A key record.
    Key = 2,
    /// A row of the usage log.
    Usage = 3,
}

/// 54 bits that stand for the name of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// That of a store: FNV-1a of its name.
    pub fn of(store: &str) -> Self {
        let hash = store
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self(hash >> 10)
    }
}

/// What stands in the UUID of a row of the usage log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageId {
    /// Unix milliseconds, below 2^48.
    pub at_ms: u64,
    /// Its number within the millisecond.
    pub seq: u32,
    /// The number of its code, below 16; 0 for none.
    pub code: u8,
    /// That it has no latency, where the column says 0.
    pub no_latency: bool,
}

/// The UUID of an organization or a key record.
pub fn record(kind: Kind, tag: Tag, id: u64) -> String {
    let custom_b = (kind as u64) << 8 | (tag.0 & 0x3f) << 2 | id >> 62;
    text(tag.0 >> 6, custom_b, id)
}

/// The id in the UUID of an organization or a key record of this store; None if it is not one.
pub fn record_id(kind: Kind, tag: Tag, uuid: &str) -> Option<u64> {
    let (_, custom_b, custom_c) = parts(uuid)?;
    let id = (custom_b & 3) << 62 | custom_c;
    (record(kind, tag, id) == uuid).then_some(id)
}

/// The UUID of a row of the usage log. None if its instant or its code has no room.
pub fn usage(tag: Tag, id: UsageId) -> Option<String> {
    if id.at_ms >= 1 << 48 || id.code >= 16 {
        return None;
    }
    let custom_b = (Kind::Usage as u64) << 8 | u64::from(id.code) << 4 | u64::from(id.no_latency) << 3;
    Some(text(id.at_ms, custom_b, (tag.0 >> 24) << 32 | u64::from(id.seq)))
}

/// What stands in the UUID of a row of the usage log of this store; None if it is not one.
pub fn usage_id(tag: Tag, uuid: &str) -> Option<UsageId> {
    let (at_ms, custom_b, custom_c) = parts(uuid)?;
    let id = UsageId {
        at_ms,
        seq: (custom_c & u64::from(u32::MAX)) as u32,
        code: (custom_b >> 4 & 15) as u8,
        no_latency: custom_b >> 3 & 1 == 1,
    };
    (usage(tag, id)? == uuid).then_some(id)
}

fn text(custom_a: u64, custom_b: u64, custom_c: u64) -> String {
    let variant = 2 << 14 | custom_c >> 48 & 0x3fff;
    let (high, low) = (custom_a >> 16, custom_a & 0xffff);
    format!("{high:08x}-{low:04x}-{:04x}-{variant:04x}-{:012x}", 8 << 12 | custom_b, custom_c & 0xffff_ffff_ffff)
}

/// The three stretches of a UUID. What else there is in it, the caller finds out by writing it again.
fn parts(uuid: &str) -> Option<(u64, u64, u64)> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut groups = uuid.split('-');
    let [high, low, custom_b, variant, last] = std::array::from_fn(|_| groups.next().unwrap_or_default());
    let custom_c = hex(variant)? & 0x3fff;
    let custom_a = hex(high)?.checked_mul(1 << 16)?.checked_add(hex(low)?)?;
    Some((custom_a, hex(custom_b)? & 0xfff, custom_c << 48 | hex(last)? & 0xffff_ffff_ffff))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_stays_as_it_was_released() {
        // Computed with Python.
        let tag = Tag::of("acme");
        assert_eq!(record(Kind::Org, tag, 1), "0724d383-f4f6-81dc-8000-000000000001");
        assert_eq!(record(Kind::Key, tag, u64::MAX), "0724d383-f4f6-82df-bfff-ffffffffffff");
        let id = UsageId { at_ms: 1_795_348_800_123, seq: 7, code: 9, no_latency: true };
        assert_eq!(usage(tag, id).unwrap(), "01a20320-a27b-8398-81c9-34e000000007");
    }

    #[test]
    fn what_is_none_of_ours_has_no_id() {
        let tag = Tag::of("acme");
        let good = record(Kind::Key, tag, 17);
        for uuid in [
            "",
            "----",
            "f47ac10b-58cc-4372-a567-0e02b2c3d479",
            &good.to_uppercase(),
            &format!("{good}0"),
            &format!("{good}-"),
            &good[1..],
            &good.replace('-', ""),
            &record(Kind::Org, tag, 17),
            &record(Kind::Key, Tag::of("other"), 17),
            "+1111111-1111-8111-8111-111111111111",
        ] {
            assert_eq!(record_id(Kind::Key, tag, uuid), None, "{uuid}");
            assert_eq!(usage_id(tag, uuid), None, "{uuid}");
        }
    }

    proptest! {
        #[test]
        fn ids_come_back_out_of_uuids(id in any::<u64>(), store in "[a-z]{1,20}") {
            let tag = Tag::of(&store);
            for kind in [Kind::Org, Kind::Key] {
                let uuid = record(kind, tag, id);
                prop_assert_eq!(uuid.len(), 36);
                prop_assert_eq!(record_id(kind, tag, &uuid), Some(id));
                prop_assert_eq!(usage_id(tag, &uuid), None);
            }
        }

        #[test]
        fn rows_of_the_log_come_back_out_of_uuids(
            at_ms in 0..1_u64 << 48, seq in any::<u32>(), code in 0..16_u8, no_latency in any::<bool>(), store in "[a-z]{1,20}",
        ) {
            let id = UsageId { at_ms, seq, code, no_latency };
            let uuid = usage(Tag::of(&store), id).unwrap();
            prop_assert_eq!(uuid.len(), 36);
            prop_assert_eq!(usage_id(Tag::of(&store), &uuid), Some(id));
            prop_assert_eq!(record_id(Kind::Key, Tag::of(&store), &uuid), None);
        }

        #[test]
        fn reading_is_total(text in "\\PC{0,50}", hex in "[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}") {
            for text in [text, hex] {
                let _ = (record_id(Kind::Key, Tag::of("acme"), &text), usage_id(Tag::of("acme"), &text));
            }
        }
    }
}

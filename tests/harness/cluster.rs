//! A cluster on this machine: primaries that share the slots evenly, each with a replica if so wanted.

use redis::Value;

use super::{Client, Reply, Server, Setup, Sut, args, eventually, expect};

const SLOTS: usize = 16384;

/// A running cluster.
pub struct Cluster {
    pub primaries: Vec<Server>,
    /// One for each primary, in the same order; or none at all.
    pub replicas: Vec<Server>,
    /// The ids of the primaries.
    pub ids: Vec<String>,
}

impl Cluster {
    /// Starts the nodes and waits until all of them know that all is well.
    pub fn start(primaries: Vec<Setup>, replicas: Vec<Setup>) -> Self {
        let start = |setups: Vec<Setup>| setups.into_iter().map(Setup::start).collect::<Vec<Server>>();
        let (primaries, replicas) = (start(primaries), start(replicas));
        let mut clients: Vec<Client> = primaries.iter().chain(&replicas).map(Server::client).collect();
        for (n, c) in clients.iter_mut().enumerate().take(primaries.len()) {
            let [first, next] = [n, n + 1].map(|n| (n * SLOTS).div_ceil(primaries.len()));
            c.ok(format!("CLUSTER ADDSLOTSRANGE {first} {}", next - 1));
            c.ok(format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1));
        }
        let (first, others) = clients.split_first_mut().expect("a cluster has a node");
        for other in others {
            // 1234... 127.0.0.1:7000@17000,host myself,master ...
            let line = other.ok("CLUSTER NODES").text();
            let bus = line.split(['@', ',', ' ']).nth(2).expect("the bus port").to_owned();
            first.ok(format!("CLUSTER MEET 127.0.0.1 {} {bus}", other.port()));
        }
        let all_see = |clients: &mut Vec<Client>, fields: &[String]| {
            for c in clients {
                let info = c.ok("CLUSTER INFO").text();
                expect(fields.iter().all(|field| info.contains(field)), || info.clone())?;
            }
            Ok(())
        };
        let met = [format!("cluster_known_nodes:{}", clients.len())];
        eventually("the nodes knowing each other", || all_see(&mut clients, &met));
        let ids: Vec<String> = clients.iter_mut().take(primaries.len()).map(id_of).collect();
        for (c, id) in clients.iter_mut().skip(primaries.len()).zip(&ids) {
            c.ok(format!("CLUSTER REPLICATE {id}"));
        }
        let well = ["cluster_state:ok".to_owned(), format!("cluster_slots_ok:{SLOTS}")];
        eventually("the cluster", || all_see(&mut clients, &well));
        for (primary, replica) in primaries.iter().zip(&replicas) {
            primary.wait_for(replica);
        }
        Self { primaries, replicas, ids }
    }

    /// The slot of a key, and the primary that has had it from the start.
    pub fn place_of(&self, key: &[u8]) -> (i64, usize) {
        let slot = slot_of(&mut self.primaries[0].client(), key);
        (slot, slot as usize * self.primaries.len() / SLOTS)
    }

    /// Opens a slot for moving.
    pub fn begin_migration(&self, slot: i64, source: usize, target: usize) {
        self.set_slot(target, format!("{slot} IMPORTING {}", self.ids[source]));
        self.set_slot(source, format!("{slot} MIGRATING {}", self.ids[target]));
    }

    /// Gives a slot to its new owner.
    pub fn end_migration(&self, slot: i64, target: usize) {
        // The new owner is told first: else nobody would serve the slot for a moment.
        let others = (0..self.primaries.len()).filter(|&n| n != target);
        for n in [target].into_iter().chain(others) {
            self.set_slot(n, format!("{slot} NODE {}", self.ids[target]));
        }
    }

    fn set_slot(&self, node: usize, what: String) {
        let mut c = self.primaries[node].client();
        // Valkey asks the replicas first, and gives up if they take long.
        eventually("SETSLOT", || {
            let reply = c.call(format!("CLUSTER SETSLOT {what}"));
            expect(reply == Value::Okay, || reply.error())
        });
    }

    /// Moves slots key by key, as redis-cli does.
    pub fn move_slots(&self, slots: &[i64], source: usize, target: usize) {
        let (mut from, to) = (self.primaries[source].client(), self.primaries[target].client());
        for slot in slots {
            self.begin_migration(*slot, source, target);
            loop {
                let keys = from.ok(format!("CLUSTER GETKEYSINSLOT {slot} 100"));
                if keys.list().is_empty() {
                    break;
                }
                for key in keys.list() {
                    migrate(&mut from, &to, &key.bytes());
                }
            }
            self.end_migration(*slot, target);
        }
        // A node that does not know yet how new the target's word is could hold an older one against it in the next move.
        let mut clients: Vec<Client> = self.primaries.iter().map(Server::client).collect();
        eventually("the same epoch on all nodes", || {
            let epoch = |c: &mut Client| {
                let info = c.ok("CLUSTER INFO").text();
                info.lines().find(|line| line.starts_with("cluster_current_epoch")).map(str::to_owned)
            };
            let epochs: Vec<_> = clients.iter_mut().map(epoch).collect();
            expect(epochs.iter().all(|epoch| *epoch == epochs[0]), || format!("{epochs:?}"))
        });
    }

    /// Has the servers move slots by themselves, if they can; `false` if they cannot.
    pub fn have_slots_moved(&self, sut: &Sut, slots: &[i64], source: usize, target: usize) -> bool {
        let ranges: Vec<String> = slots.iter().map(|slot| format!("{slot} {slot}")).collect();
        let ranges = ranges.join(" ");
        let [mut from, mut to] = [source, target].map(|n| self.primaries[n].client());
        let state = match &*sut.name {
            "valkey-9.1" => {
                from.ok(format!("CLUSTER MIGRATESLOTS SLOTSRANGE {ranges} NODE {}", self.ids[target]));
                "CLUSTER GETSLOTMIGRATIONS"
            }
            "redis-8.10" => {
                to.ok(format!("CLUSTER MIGRATION IMPORT {ranges}"));
                "CLUSTER MIGRATION STATUS ALL"
            }
            _ => return false,
        };
        eventually("the slots having moved", || {
            let owned = [&mut to, &mut from].map(slots_owned);
            let moved = slots.iter().all(|slot| owned[0].contains(slot) && !owned[1].contains(slot));
            expect(moved, || format!("{:?}", to.ok(state)))
        });
        true
    }
}

pub fn slot_of(c: &mut Client, key: &[u8]) -> i64 {
    c.ok(args!["CLUSTER", "KEYSLOT", key]).int()
}

/// Moves one key as redis-cli does; one that is gone by now has nothing to move.
pub fn migrate(from: &mut Client, to: &Client, key: &[u8]) {
    let reply = from.ok(args!["MIGRATE", "127.0.0.1", to.port(), key, "0", "20000"]);
    let gone = reply == Value::SimpleString("NOKEY".to_owned()) && from.ok(args!["EXISTS", key]).int() == 0;
    assert!(reply == Value::Okay || gone, "MIGRATE {} answers {reply:?}", key.escape_ascii());
}

fn id_of(c: &mut Client) -> String {
    c.ok("CLUSTER MYID").text()
}

/// The slots that a node believes to be its own.
fn slots_owned(c: &mut Client) -> Vec<i64> {
    let nodes = c.ok("CLUSTER NODES").text();
    let own = nodes.lines().find(|line| line.contains("myself")).expect("a line of its own");
    // id address flags primary ping pong epoch link, then `first-last`, `single` or `[moving...]`.
    let ranges = own.split(' ').skip(8).filter(|range| !range.starts_with('['));
    let bounds = ranges.map(|range| range.split_once('-').unwrap_or((range, range)));
    bounds.flat_map(|(first, last)| first.parse().unwrap()..=last.parse().unwrap()).collect()
}

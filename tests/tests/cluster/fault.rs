//! The faults that happen to the members.

use std::fmt;

use flatnet_tests::members::{COUNT, Members, Side};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The leader's process is killed.
    LeaderKilled,
    /// The leader hangs: its connections stay open.
    LeaderHung,
    /// The leader's cable is pulled.
    Unplugged,
    /// The leader and one of the servers are alone in their half of the network.
    MinorityCutOff,
    /// The servers reach the leader alone: nobody can write.
    MajorityCutOff,
    /// The leader's disk is full.
    DiskFull,
    /// The history that a server has not seen is compacted away while it is cut off, and a follower is killed.
    Compacted,
    /// All members are killed.
    AllKilled,
}

impl Fault {
    pub const ALL: [Self; 8] = [
        Self::LeaderKilled,
        Self::LeaderHung,
        Self::Unplugged,
        Self::MinorityCutOff,
        Self::MajorityCutOff,
        Self::DiskFull,
        Self::Compacted,
        Self::AllKilled,
    ];

    /// Returns true if some server reaches two members that reach each other.
    pub fn leaves_a_majority(self) -> bool {
        !matches!(self, Self::MajorityCutOff | Self::AllKilled)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeaderKilled => "leader killed",
            Self::LeaderHung => "leader hung",
            Self::Unplugged => "the leader's cable pulled",
            Self::MinorityCutOff => "the leader and a server cut off",
            Self::MajorityCutOff => "the majority cut off",
            Self::DiskFull => "the leader's disk full",
            Self::Compacted => "compacted behind a server that is cut off, a follower killed",
            Self::AllKilled => "all killed",
        })
    }
}

/// The members, and the servers in front of them.
pub struct Cluster {
    pub members: Members,
    /// The place of the nodes, and of the test that watches over them.
    pub place: Side,
    pub servers: [Side; 2],
}

impl Cluster {
    /// Does the fault. Everything must be well before.
    pub fn strike(&mut self, fault: Fault) {
        let leader = self.members.leader();
        match fault {
            Fault::LeaderKilled => self.members.kill(leader),
            Fault::LeaderHung => self.members.hang(leader),
            Fault::Unplugged => self.members.unplug(leader),
            Fault::MinorityCutOff => {
                let [first, second] = self.servers.clone();
                self.members.cut(&[leader], &[first], &[second]);
            }
            Fault::MajorityCutOff => {
                let beside: Vec<Side> = self.servers.iter().chain([&self.place]).cloned().collect();
                self.members.cut(&[leader], &beside, &[]);
            }
            Fault::DiskFull => {
                self.members.make_leader(0);
                self.members.fill_disk();
            }
            Fault::Compacted => {
                let [_, second] = self.servers.clone();
                self.members.cut_off(&second);
                // Something has to happen that it does not see.
                flatnet_tests::wait::pause(std::time::Duration::from_secs(1));
                self.members.compact(leader);
                self.members.kill((leader + 1) % COUNT);
            }
            Fault::AllKilled => (0..COUNT).for_each(|index| self.members.kill(index)),
        }
    }
}

//! Servers without TCP and TLS before them, for simulations: a replica, and who comes to it.

pub use crate::server::{Replica, Stranger};
pub use flatnet_plane::simulation::{CertificateDer, Dial, channel, follow_tokios_clock, time_of_day};

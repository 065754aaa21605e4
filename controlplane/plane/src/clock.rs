//! The time of day, as certificates and tokens count it.

use std::time::SystemTime;

/// Returns the time now, of this host or of the simulation that runs here.
#[must_use]
pub fn now() -> SystemTime {
    #[cfg(feature = "simulation")]
    return crate::simulation::time_of_day();
    #[cfg(not(feature = "simulation"))]
    SystemTime::now()
}

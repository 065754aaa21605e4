//! What the parts of a node share and tell each other, and their one shape.
//!
//! Nothing here does anything by itself: it stands below the parts, so that they need not know each other.

pub mod channels;
pub mod context;
pub mod host_options;
pub mod metrics;
pub mod networks;
pub mod outcome;
pub mod part;

//! Flatnet's agent.

//! Flatnet's agent: one per host. It leases a subnet and keeps the kernel equal to what the store says.
//!
//! - [`cli`]: the command line, one file per subcommand
//! - [`daemon`]: the process that `agent join` runs; [`node`]: the parts in it, generic over store and kernel
//! - [`part`]: the shape of all parts; [`context`]: what they share
//! - [`reconciler`]: the loop; the only place that changes the kernel
//! - [`lease_keeper`], [`presence_keeper`]: what this node has in the store; [`channels`]: how each way to the store
//!   fares
//! - [`membership`]: the networks joined and left while the agent runs, remembered in [`network_record`]
//! - [`networks`], [`outcome`]: what the parts tell each other
//! - [`evidence`]: what the kernel tells of packets that do not arrive
//! - [`status`], [`metrics`], [`http`], [`local_api`], [`env_files`], [`problem_log`]: what others are told
//! - [`report`]: how commands end

mod certificate;
pub mod channels;
pub mod cli;
pub mod context;
pub mod daemon;
pub mod doctor;
pub mod env_files;
pub mod evidence;
pub mod host_kernel;
pub mod host_options;
pub mod http;
pub mod lease_keeper;
pub mod local_api;
pub mod membership;
pub mod metrics;
pub mod namespace_lock;
pub mod network_record;
mod network_report;
pub mod networks;
pub mod node;
pub mod outcome;
pub mod part;
pub mod plane;
pub mod preflight;
pub mod presence_keeper;
pub mod problem_log;
pub mod purge;
pub mod reconciler;
pub mod report;
pub mod rotation;
pub mod snapshots;
pub mod state_dir;
pub mod status;
pub mod store_address;
pub mod store_endpoints;
pub mod sysctl_record;
pub mod telemetry;
pub mod underlay_record;
mod wall_clock;
pub mod wireguard_key;

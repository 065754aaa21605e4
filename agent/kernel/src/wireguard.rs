//! WireGuard devices: their keys and peers, whoever encrypts.
//!
//! | who encrypts | the device | its settings |
//! |---|---|---|
//! | the kernel | of kind `wireguard` | over generic netlink |
//! | this process (`userspace`) | a TUN device of the same name | over `/run/wireguard/<device>.sock`, like `wg` |
//!
//! Only [`Keyring`] knows private keys. Objects, plans and logs have the public half.

pub(crate) mod control;
mod keyring;
pub(crate) mod userspace;

pub use keyring::{Keyring, PrivateKey};

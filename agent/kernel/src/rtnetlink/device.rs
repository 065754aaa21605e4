//! Devices that the kernel makes: how they are made, changed and deleted, for every provider that has some.

use std::hash::{BuildHasher, RandomState};

use flatnet_core::object::Link;
use flatnet_model::IfName;
use nix::errno::Errno;

use super::absent_is_done;
use super::links;
use crate::netlink::encode;
use crate::netlink::parse::RawLink;
use crate::netlink::socket::{Channel, Refusal};

/// Creates a device and returns its index. It is made, marked and silenced in one `send()` (see
/// [`encode::link_create`]), and then brought up. If any of it fails, the device is taken away again.
pub(crate) fn create(channel: &mut Channel, name: IfName, wanted: &Link) -> Result<u32, Refusal> {
    let index = free_index();
    let Some(create) = encode::link_create(name, wanted, index) else {
        return Err(Refusal::of(Errno::EOPNOTSUPP));
    };
    let mut requests = vec![create, encode::link_mark(index, Link::ALIAS), encode::link_quiet(index)];
    requests.extend(encode::link_settle(index, wanted));
    let mut answers = channel.request_all(&requests).into_iter();
    answers.next().unwrap_or(Ok(()))?;
    let made = answers.filter(|answer| !is_no_ipv6(answer)).collect::<Result<(), Refusal>>();
    let made = made.and_then(|()| bring_up(channel, name, wanted, index));
    if made.is_err() {
        take_back(channel, name, index);
    }
    made.map(|()| index)
}

/// Deletes a device that was made in part.
pub(crate) fn take_back(channel: &mut Channel, name: IfName, index: u32) {
    if let Err(refusal) = channel.request(&encode::link_delete(index)) {
        tracing::warn!(link = %name, error = %refusal, "cannot take back a link made in part");
    }
}

/// Brings a device up that was just made, if it is to be up.
pub(crate) fn bring_up(channel: &mut Channel, name: IfName, wanted: &Link, index: u32) -> Result<(), Refusal> {
    links::deafen(name);
    if wanted.up { channel.request(&encode::link_up(index)) } else { Ok(()) }
}

/// Gives a device of ours, which was found as `present`, what `wanted` says.
pub(crate) fn change(channel: &mut Channel, name: IfName, present: &RawLink, wanted: &Link) -> Result<(), Refusal> {
    let index = present.index;
    let state = if wanted.up { encode::link_up(index) } else { encode::link_down(index) };
    let mut requests = vec![encode::link_set(index, wanted, present.mac), encode::link_quiet(index), state];
    requests.extend(encode::link_remake(index, name, wanted));
    channel.request_all(&requests).into_iter().filter(|answer| !is_no_ipv6(answer)).collect()
}

/// Deletes a device of ours. If it is already gone, that is success.
pub(crate) fn delete(channel: &mut Channel, name: IfName) -> Result<(), Refusal> {
    match owned(channel, name)? {
        Some(link) => absent_is_done(channel.request(&encode::link_delete(link.index))),
        None => Ok(()),
    }
}

/// Puts our mark on a device, whoever made it.
pub(crate) fn adopt(channel: &mut Channel, name: IfName) -> Result<(), Refusal> {
    match links::named(channel, name)? {
        Some(link) => channel.request(&encode::link_mark(link.index, Link::ALIAS)),
        None => Ok(()),
    }
}

/// Returns a device, if it is ours: it may have been exchanged for another since the dump.
pub(crate) fn owned(channel: &mut Channel, name: IfName) -> Result<Option<RawLink>, Refusal> {
    match links::named(channel, name)? {
        Some(link) if !links::is_ours(&link) => {
            Err(Refusal { errno: libc::EEXIST, reason: format!("{name} is not ours ({})", links::describe(&link)) })
        }
        found => Ok(found),
    }
}

/// Returns a device that is ours and must be there.
pub(crate) fn present(channel: &mut Channel, name: IfName) -> Result<RawLink, Refusal> {
    owned(channel, name)?.ok_or_else(|| Refusal::of(Errno::ENODEV))
}

/// Returns true if [`encode::link_quiet`] was refused because the device has no IPv6, and hence makes no link-local
/// address: IPv6 is disabled, or the MTU is below its minimum.
pub(crate) fn is_no_ipv6(answer: &Result<(), Refusal>) -> bool {
    matches!(answer, Err(refusal) if refusal.errno == libc::EAFNOSUPPORT)
}

/// Returns an interface index that is most probably free: the kernel counts up from 1 and hands these out last. A clash
/// makes the kernel refuse the creation.
pub(crate) fn free_index() -> u32 {
    /// From 2^24 to 2^30: far above the kernel's own, and below the sign bit of `ifindex`.
    const FIRST: u64 = 1 << 24;
    const COUNT: u64 = (1 << 30) - FIRST;
    // RandomState is seeded by the system's random numbers, anew for each instance.
    let random = RandomState::new().hash_one(0_u8);
    u32::try_from(FIRST + random % COUNT).unwrap_or(1 << 24)
}

//! The bytes that fit into a tunnel.

use flatnet_model::{IpFamily, Mtu};

use super::NetworkCtx;
use crate::problem::{Problem, ProblemCode};

/// Bytes of headers that a backend adds to an IP packet, so that the result is an IP packet of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overhead(pub u32);

/// Returns the network's MTU: the configured one if it fits, or else the largest that fits.
pub(super) fn fitting_mtu(
    ctx: &NetworkCtx<'_>,
    family: IpFamily,
    overhead: Overhead,
    configured: Option<Mtu>,
    problems: &mut Vec<Problem>,
) -> Result<Mtu, Problem> {
    let too_small = || {
        Problem::new(
            ProblemCode::UnderlayMtu,
            format!(
                "network {}: the underlay {} has an MTU of {} bytes, too small for {family} with {} bytes of headers",
                ctx.name, ctx.underlay.device, ctx.underlay.mtu, overhead.0
            ),
            format!("ip link set {} mtu 1500, as far as the network between the hosts carries it", ctx.underlay.device),
            ctx.underlay.device,
        )
    };
    let fits = ctx.underlay.mtu.less(overhead.0).map_err(|_| too_small())?;
    let mtu = match configured {
        Some(configured) if configured > fits => {
            problems.push(Problem::new(
                ProblemCode::MtuTooLarge,
                format!(
                    "network {}: the configured MTU {configured} does not fit {} ({} bytes less {} of headers); {fits} is used",
                    ctx.name, ctx.underlay.device, ctx.underlay.mtu, overhead.0
                ),
                format!("agent network update {} --mtu {fits}, or raise the underlay's MTU on every host", ctx.name),
                ctx.name,
            ));
            fits
        }
        Some(configured) => configured,
        None => fits,
    };
    if family == IpFamily::V4 || mtu.get() >= Mtu::MIN_IPV6 {
        return Ok(mtu);
    }
    Err(match configured {
        Some(configured) if configured == mtu => Problem::new(
            ProblemCode::MtuTooSmall,
            format!(
                "network {}: the configured MTU {configured} is too small for IPv6 (RFC 8200: 1280 bytes)",
                ctx.name
            ),
            format!("agent network update {} --mtu {fits}", ctx.name),
            ctx.name,
        ),
        Some(_) | None => too_small(),
    })
}

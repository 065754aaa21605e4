//! The caller of a request, told by the connection, never by a message.

use std::net::IpAddr;

use flatnet_model::NodeId;
use tonic::{Extensions, Request, Status};

use flatnet_plane::clock;
use flatnet_plane::identity::{Holder, Identity};
use flatnet_plane::wire::refusal;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// Somebody on this machine who may open the socket.
    Local,
    /// A caller over TLS.
    Remote {
        /// The address it calls from.
        address: IpAddr,
        /// The holder of the certificate shown, if one was.
        holder: Option<Holder>,
    },
}

impl Peer {
    /// Returns the other end of the connection that a request came on.
    fn of(extensions: &Extensions) -> Result<&Self, Status> {
        extensions.get::<Self>().ok_or_else(|| Status::internal("the connection says nothing of its other end"))
    }

    /// Returns the caller's name for the audit log.
    #[must_use]
    pub fn who(&self) -> String {
        match self {
            Self::Local => "local".to_owned(),
            Self::Remote { holder: Some(holder), .. } => holder.identity.to_string(),
            Self::Remote { holder: None, .. } => "nobody".to_owned(),
        }
    }

    /// Returns the caller's address for the audit log.
    #[must_use]
    pub fn from(&self) -> String {
        match self {
            Self::Local => "socket".to_owned(),
            Self::Remote { address, .. } => address.to_string(),
        }
    }
}

/// A node, by the certificate it showed.
#[derive(Clone, Debug)]
pub struct NodeCaller {
    /// The node.
    pub node: NodeId,
    /// The hash of its certificate's key, as in [`Holder::key_hash`].
    pub key_hash: String,
    /// The address it calls from.
    pub address: IpAddr,
    /// The connection's other end.
    pub peer: Peer,
}

/// Returns the node that asks; refuses everybody else.
pub fn node<T>(request: &Request<T>) -> Result<NodeCaller, Status> {
    let peer = Peer::of(request.extensions())?;
    match peer {
        // A node may call also when its certificate has ended since. It can be revoked, which ends its rights at once,
        // and a certificate that could not be renewed in time is renewed over the connection that is there.
        Peer::Remote { address, holder: Some(Holder { identity: Identity::Node(node), key_hash, .. }) } => {
            Ok(NodeCaller { node: *node, key_hash: key_hash.clone(), address: *address, peer: peer.clone() })
        }
        _ => Err(refusal::not_allowed("only a node's certificate may do this", "join with a token first")),
    }
}

/// Returns the administrator that asks; refuses everybody else.
pub fn admin<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = Peer::of(request.extensions())?;
    match peer {
        Peer::Local => Ok(peer.clone()),
        Peer::Remote { holder: Some(holder @ Holder { identity: Identity::Admin(_), .. }), .. } => {
            // TLS looks at the certificate once, a connection may last for weeks, and nothing else ends an
            // administrator's rights.
            if holder.is_over(clock::now()) {
                return Err(Status::unauthenticated("the certificate shown when this connection began has ended"));
            }
            Ok(peer.clone())
        }
        Peer::Remote { .. } => Err(refusal::not_allowed(
            "only an administrator may do this",
            "on the server's machine: controlplane …; elsewhere: --credentials with what `controlplane admin create` printed",
        )),
    }
}

/// Returns the caller on this machine; refuses everybody else.
pub fn local<T>(request: &Request<T>) -> Result<Peer, Status> {
    match Peer::of(request.extensions())? {
        Peer::Local => Ok(Peer::Local),
        Peer::Remote { .. } => Err(refusal::not_allowed("this is done on the server's machine only", "use its socket")),
    }
}

/// Returns the caller, with or without a certificate, and the address it joins from.
pub fn stranger<T>(request: &Request<T>) -> Result<(Peer, Option<IpAddr>), Status> {
    let peer = Peer::of(request.extensions())?;
    let address = match peer {
        Peer::Local => None,
        Peer::Remote { address, .. } => Some(*address),
    };
    Ok((peer.clone(), address))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::{Duration, SystemTime};

    use tonic::Code;

    use super::*;

    fn request(identity: Identity, not_after: SystemTime) -> Request<()> {
        let lifetime = Duration::from_secs(3600);
        let holder = Some(Holder { identity, key_hash: String::new(), lifetime, not_after });
        let mut request = Request::new(());
        request.extensions_mut().insert(Peer::Remote { address: Ipv4Addr::LOCALHOST.into(), holder });
        request
    }

    #[test]
    fn an_administrators_connection_is_worth_nothing_once_its_certificate_has_ended_and_a_nodes_renews_it() {
        let (past, future) = (clock::now() - Duration::from_secs(1), clock::now() + Duration::from_secs(60));
        let of_node = |not_after| node(&request(Identity::Node(NodeId::new(1)), not_after)).map(drop);
        let of_admin = |not_after| admin(&request(Identity::Admin("a".to_owned()), not_after)).map(drop);
        assert!(of_node(future).is_ok() && of_admin(future).is_ok());
        assert!(of_node(past).is_ok());
        assert_eq!(of_admin(past).unwrap_err().code(), Code::Unauthenticated);
    }
}

//! The store that is meant: the endpoints somebody named, and what is opened at them.

use std::path::PathBuf;

use flatnet_plane::client::ServerAddress;
use flatnet_plane::endpoint::{Endpoint, InvalidEndpoint};
use flatnet_plane::etcd_args::EtcdArgs;
use flatnet_plane::store::etcd::EtcdStore;
use flatnet_proto::agent::v1::Store as StoreDocument;

use crate::report::{Exit, Failure};

/// Reads a list of endpoints: at least one, separated by blanks or commas.
pub fn endpoints(texts: &[String]) -> Result<Vec<Endpoint>, Failure> {
    let all = texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty());
    let all = all
        .map(str::parse)
        .collect::<Result<Vec<Endpoint>, InvalidEndpoint>>()
        .map_err(|error| Failure::new(Exit::InvalidConfig, error.to_string()).hint(InvalidEndpoint::HINT))?;
    match all.split_first() {
        None => Err(Failure::new(Exit::Usage, "no endpoint given").hint(
            "name the etcd or control plane to use, e.g. http://192.168.33.10:2379 or grpcs://192.168.33.10:7443",
        )),
        Some((first, rest)) if rest.iter().any(|other| other.kind != first.kind) => {
            Err(Failure::new(Exit::Usage, "the endpoints are of two kinds")
                .hint("several endpoints are servers of one etcd, or of one control plane: all http(s) or all grpcs"))
        }
        Some(_) => Ok(all),
    }
}

/// Opens the etcd at `endpoints`, by the flags `args`. The etcd need not be there.
pub fn open(args: &EtcdArgs, endpoints: &[Endpoint]) -> Result<EtcdStore, Failure> {
    args.open(endpoints.iter().map(|endpoint| endpoint.url.clone()).collect())
}

/// Returns the document on the store that the socket gives to other commands.
#[must_use]
pub fn document(args: &EtcdArgs, endpoints: &[Endpoint]) -> StoreDocument {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    StoreDocument {
        endpoints: endpoints.iter().map(|endpoint| endpoint.url.clone()).collect(),
        etcd_prefix: args.etcd_prefix.clone(),
        cafile: path(&args.etcd_cafile),
        certfile: path(&args.etcd_certfile),
        keyfile: path(&args.etcd_keyfile),
        username: args.etcd_username.clone(),
        password_file: path(&args.etcd_password_file),
    }
}

/// Returns the addresses of a control plane's servers.
#[must_use]
pub fn servers(endpoints: &[Endpoint]) -> Vec<ServerAddress> {
    endpoints.iter().map(|endpoint| ServerAddress { host: endpoint.host.clone(), port: endpoint.port }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_endpoints_are_of_one_kind() {
        let parse = |text: &str| endpoints(&[text.to_owned()]);
        assert_eq!(parse("grpcs://a,http://b").unwrap_err().exit(), Exit::Usage);
        assert_eq!(parse(" , ").unwrap_err().exit(), Exit::Usage);
        assert_eq!(parse("http://a,b:x").unwrap_err().exit(), Exit::InvalidConfig);
        assert_eq!(servers(&parse("grpcs://a,grpcs://[fd00::1]:1").unwrap()).len(), 2);
        assert_eq!(parse("http://proj_etcd_1:2379, proj_etcd_2").unwrap().len(), 2);
    }
}

use std::collections::BTreeMap;

use flatnet_model::IfName;
use flatnet_plane::store::{StoreError, StoreErrorKind};
use flatnet_proto::agent::v1::{Network, Peer, Status};

use super::*;

/// Returns a page with every metric at least once.
fn rendered() -> String {
    let metrics = Metrics::new();
    metrics.pass(0.003);
    metrics.op(ObjectKind::Route, Action::Create, "done");
    metrics.drift(ObjectKind::Link);
    metrics.watch_restarted(StoreErrorKind::Unavailable);
    let failed = BTreeSet::from([ObjectKey::Link(IfName::new("flat.1").unwrap())]);
    metrics.objects(&KernelState::default(), &failed);
    let peer = Peer { backend: "vxlan".to_owned(), state: "programmed".to_owned(), ..Peer::default() };
    let network = Network { name: "default".to_owned(), peers: vec![peer.clone(), peer], ..Network::default() };
    let status = Status { networks: vec![network], ..Status::default() };
    let network = || "default".to_owned();
    let now = Gauges {
        connected: vec![(network(), true)],
        expiry: vec![(network(), 1.5e9)],
        channels: vec![("presence", String::new(), true), ("claim", network(), false)],
        dropped: vec![(network(), "not a peer".to_owned(), 7)],
        claimed: vec![(network(), "address", "host2".to_owned(), 7), (network(), "clear", "a\"} 9".to_owned(), 1)],
    };
    metrics.render(&status, &now)
}

#[test]
fn every_documented_metric_is_there_under_its_name() {
    let text = rendered();
    for line in [
        "flatnet_reconcile_duration_seconds_count 1",
        "flatnet_reconcile_ops_total{kind=\"route\",op=\"create\",result=\"done\"} 1",
        "flatnet_objects{kind=\"link\",status=\"failed\"} 1",
        "flatnet_objects{kind=\"link\",status=\"programmed\"} 0",
        "flatnet_drift_repairs_total{kind=\"link\"} 1",
        "flatnet_controlplane_connected{network=\"default\"} 1",
        "flatnet_dropped_packets_total{network=\"default\",reason=\"not a peer\"} 7",
        "flatnet_source_mismatch_packets_total{network=\"default\",peer=\"host2\",reason=\"address\"} 7",
        "flatnet_source_mismatch_packets_total{network=\"default\",peer=\"a\\\"} 9\",reason=\"clear\"} 1",
        "flatnet_store_channel_ok{network=\"\",channel=\"presence\"} 1",
        "flatnet_store_channel_ok{network=\"default\",channel=\"claim\"} 0",
        "flatnet_watch_restarts_total{reason=\"unavailable\"} 1",
        "flatnet_lease_expiry_timestamp_seconds{network=\"default\"} 1500000000.0",
        "flatnet_peers{network=\"default\",backend=\"vxlan\",state=\"programmed\"} 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nin\n{text}");
    }
}

#[test]
fn every_kind_of_object_is_counted() {
    let text = rendered();
    for kind in ObjectKind::ALL {
        for status in ["programmed", "failed"] {
            let series = format!("flatnet_objects{{kind=\"{}\",status=\"{status}\"}} ", kind.as_str());
            assert!(text.contains(&series), "{series}\nin\n{text}");
        }
    }
}

/// Checks Prometheus' rules for names, and OpenMetrics' for the text around them.
#[test]
fn the_text_is_openmetrics_with_prometheus_names() {
    let text = rendered();
    let mut types = BTreeMap::new();
    let mut helped = BTreeSet::new();
    for line in text.strip_suffix("# EOF\n").unwrap().lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.') && helped.insert(name.to_owned()), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            assert!(labels.ends_with('}') && value.parse::<f64>().is_ok(), "{line}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            let of = |suffix: &str, kind: &str| {
                name.strip_suffix(suffix).and_then(|family| types.get(family)).is_some_and(|found| found == kind)
            };
            let known = of("_total", "counter")
                || of("", "gauge")
                || ["_sum", "_count", "_bucket"].iter().any(|suffix| of(suffix, "histogram"));
            assert!(known, "{line}");
        }
    }
    assert_eq!(types.keys().cloned().collect::<BTreeSet<_>>(), helped);
    assert!(types.keys().all(|name| name.starts_with("flatnet_")));
}

#[test]
fn each_kind_of_store_error_has_its_reason() {
    let endpoint = || "http://a:2379".to_owned();
    let errors = [
        (StoreError::Unavailable { endpoint: endpoint(), reason: "timed out".to_owned() }, "unavailable"),
        (StoreError::Compacted(7), "compacted"),
        (StoreError::Denied { endpoint: endpoint(), reason: "no".to_owned() }, "denied"),
        (StoreError::Rejected { endpoint: endpoint(), reason: "no".to_owned() }, "rejected"),
        (StoreError::LeaseGone(1), "other"),
    ];
    for (error, reason) in errors {
        assert_eq!(restart_reason(error.kind()), reason, "{error}");
    }
}

#[tokio::test]
async fn a_lost_store_counts_once_however_often_its_reason_changes() {
    let metrics = Arc::new(Metrics::new());
    let (view, receiver) = watch::channel(NetworkView::default());
    let counting = tokio::spawn(count_restarts(receiver, Arc::clone(&metrics)));
    let lost = |reason: &str| Connection::Lost {
        reason: format!("the store at a is not reachable: {reason}"),
        kind: StoreErrorKind::Unavailable,
    };
    for connection in [lost("x"), Connection::Connected, lost("x"), lost("y"), Connection::Connected, lost("z")] {
        view.send_modify(|view| view.connection = connection);
        tokio::task::yield_now().await;
    }
    drop(view);
    counting.await.unwrap();
    let text = metrics.render(&Status::default(), &Gauges::default());
    assert!(text.contains("flatnet_watch_restarts_total{reason=\"unavailable\"} 2\n"), "{text}");
}

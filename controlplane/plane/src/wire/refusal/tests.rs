use super::*;

/// A client is told whatever the server's store answers: a refusal is one, in the store's words, and what may pass by
/// itself is no refusal.
#[test]
fn a_refusal_of_the_servers_store_reaches_every_call_as_a_refusal() {
    let endpoint = || "http://etcd:2379".to_owned();
    let errors = [
        (StoreError::Denied { endpoint: endpoint(), reason: "permission denied".to_owned() }, true),
        (StoreError::Rejected { endpoint: endpoint(), reason: "database space exceeded".to_owned() }, true),
        (StoreError::Unavailable { endpoint: endpoint(), reason: "timed out".to_owned() }, false),
        (StoreError::Compacted(7), false),
        (StoreError::LeaseGone(7), false),
    ];
    for (error, refused) in errors {
        let words = error.to_string();
        let status = store(&error);
        let AcquireError::Store(claim) = read_acquire("grpcs://a:7443", &status) else { panic!("{words}") };
        let UpdateError::Store(update) = read_update("grpcs://a:7443", &status) else { panic!("{words}") };
        let PresenceError::Store(presence) = read_presence("grpcs://a:7443", &status) else { panic!("{words}") };
        for read in [read_store("grpcs://a:7443", &status), claim, update, presence] {
            assert_eq!(read.is_refusal(), refused, "{words} is read as {read}");
            assert!(!refused || read.to_string().contains(&words), "{words} is read as {read}");
        }
    }
}

//! Malformed and ambiguous requests, sent to the gateway, to nginx and to HAProxy: what one of them
//! refuses the gateway does not forward under a key, and what it forwards is what they understand.

mod corpus;
mod proxies;

use std::collections::BTreeSet;
use std::thread;

use crate::smuggling;
use corpus::{DIFFERENCES, Difference};
use proxies::{Fate, Proxy};

#[test]
fn nothing_that_another_proxy_refuses_is_forwarded_under_a_key() {
    let mut cases: Vec<(String, String)> =
        corpus::requests().into_iter().map(|(name, request)| (name.to_owned(), request)).collect();
    cases.extend(smuggling::payloads().filter_map(|(name, request)| {
        Some((format!("smuggling: {name}"), corpus::keyed(request)?))
    }));
    let names: BTreeSet<_> = cases.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
    let shares: Vec<_> = cases.chunks(cases.len().div_ceil(CLIENTS)).collect();
    let found: Vec<Finding> = thread::scope(|scope| {
        let judging: Vec<_> = shares.iter().map(|cases| scope.spawn(|| judge(cases))).collect();
        judging.into_iter().flat_map(|it| it.join().unwrap()).collect()
    });
    let is_known = |it: &Finding| DIFFERENCES.iter().any(|known| it.is(known));
    let unknown: Vec<_> = found.iter().filter(|it| !is_known(it)).collect();
    assert!(unknown.is_empty(), "{} differences:\n{unknown:#?}", unknown.len());
    let outdated: Vec<_> =
        DIFFERENCES.iter().filter(|known| !found.iter().any(|it| it.is(known))).collect();
    assert!(outdated.is_empty(), "these are none any more: {outdated:#?}");
}

/// A difference between the gateway and another proxy.
struct Finding {
    case: String,
    request: String,
    proxy: &'static str,
    gateway: Fate,
    other: Fate,
}

impl std::fmt::Debug for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { case, request, proxy, gateway, other } = self;
        write!(f, "{case}: {request:?}: gateway {gateway:?}, {proxy} {other:?}")
    }
}

impl Finding {
    fn is(&self, known: &Difference) -> bool {
        known.case == self.case && known.proxies.contains(&self.proxy)
    }
}

/// Sends requests to proxies of its own, one after the other.
fn judge(cases: &[(String, String)]) -> Vec<Finding> {
    let gateway = Proxy::gateway();
    let others = [Proxy::nginx(), Proxy::haproxy()];
    let mut found = Vec::new();
    for (number, (name, request)) in cases.iter().enumerate() {
        let request = request.replace("{key}", &format!("case-{number}")).replace('⏎', "\r\n");
        let (gateway, others) = thread::scope(|scope| {
            let asked = others.each_ref().map(|it| scope.spawn(|| it.ask(&request)));
            (gateway.ask(&request), asked.map(|it| it.join().unwrap()))
        });
        let nonsense = gateway.seen.iter().find(|it| it.starts_with("nonsense: "));
        assert!(nonsense.is_none(), "{name}: {nonsense:?}");
        for (proxy, other) in ["nginx", "haproxy"].into_iter().zip(others) {
            let refused = other.is_refused() && gateway.is_forwarded_under_a_key();
            let differs = gateway.is_forwarded_under_a_key() && !other.has_read(&gateway);
            if refused || differs {
                let (case, request) = (name.clone(), request.clone());
                found.push(Finding { case, request, proxy, gateway: gateway.clone(), other });
            }
        }
    }
    found
}

/// Parts of the corpus that are sent side by side.
const CLIENTS: usize = 8;

//! What the machine is found to offer agrees with what works on it.

use crate::{
    Test,
    lab::{Lab, Outcome},
};

pub(crate) const TESTS: &[Test] = &[("the_probe_agrees_with_the_adapter", |lab| {
    Box::pin(the_probe_agrees_with_the_adapter(lab))
})];

async fn the_probe_agrees_with_the_adapter(lab: Lab) -> Outcome {
    let probe = adapter_sandbox::probe();
    assert!(probe.is_enough(), "instances work here: {probe:#?}");
    let is_found = |what: &str| {
        let finding = probe.findings.iter().find(|finding| finding.what == what);
        finding.unwrap_or_else(|| panic!("{what} is looked for")).is_found
    };
    assert_eq!(is_found("root"), crate::lab::is_root());
    let groups = ["cgroup memory", "cgroup cpu", "cgroup pids"].into_iter().all(is_found);
    assert_eq!(groups, lab.has_groups());
    assert_eq!(is_found("root") && is_found("nft"), lab.adapter.no_egress().is_none());
    assert!(probe.findings.iter().all(|finding| !finding.remedy.is_empty()));
    lab.adapter.shutdown().await;
    Outcome::Passed
}

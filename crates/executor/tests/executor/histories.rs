//! Random histories of the whole executor: calls, crashes, faults and waits in any order.

use std::time::Duration;

use adapter_fake::Fault;
use executor::SparePolicy;
use model::{Exit, ExitStatus, Scale};
use proptest::prelude::*;
use protocol::BindError;

use crate::lab::{Lab, Setup, secs, settle, spawn_call};

#[derive(Clone, Debug)]
enum Step {
    Call { function: usize, millis: u16, patience: u16 },
    Drop(usize),
    Crash { which: usize, code: bool },
    Fault(u8),
    Wait(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = || any::<u16>().prop_map(usize::from);
    let step = prop_oneof![
        8 => (0..3_usize, 0..3000_u16, 1..5000_u16).prop_map(|(function, millis, patience)| {
            Step::Call { function, millis, patience }
        }),
        1 => which().prop_map(Step::Drop),
        2 => (which(), any::<bool>()).prop_map(|(which, code)| Step::Crash { which, code }),
        2 => (0..6_u8).prop_map(Step::Fault),
        4 => (0..2000_u16).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..40)
}

fn plan(lab: &Lab, fault: u8) {
    match fault {
        0 => lab.adapter.plan(Fault::LaunchFails),
        1 => lab.adapter.plan(Fault::LaunchStalls),
        2 => lab.adapter.plan(Fault::LaunchCrashes),
        3 => lab.adapter.plan(Fault::AttachFails),
        4 => lab.adapter.plan(Fault::AttachStalls),
        _ => lab.plan_bind(BindError::Load { message: "planned".into() }),
    }
}

async fn live(steps: Vec<Step>) {
    let spares = SparePolicy { min: 1, max: 2, keep_for: secs(5) };
    let lab = Lab::new(Setup { instances: 3, reserve: 1, waiting: 10, spares });
    let scale = |concurrency, min, max| Scale { concurrency, min, max, idle: secs(3) };
    let services = [("a", scale(1, 0, 3)), ("b", scale(3, 0, 2)), ("c", scale(2, 1, 1))]
        .map(|(label, scale)| std::sync::Arc::new(lab.executor.serve(lab.revision(label, scale))));
    let mut calls = Vec::new();
    for step in steps {
        match step {
            Step::Call { function, millis, patience } => {
                let patience = Duration::from_millis(patience.into());
                calls.push(spawn_call(&services[function], &format!("/sleep/{millis}"), patience));
            }
            Step::Drop(which) if !calls.is_empty() => calls[which % calls.len()].abort(),
            Step::Crash { which, code } => {
                let instances = lab.executor.instances();
                let instances: Vec<_> =
                    instances.iter().filter_map(|instance| instance.id.clone()).collect();
                let status = if code { ExitStatus::Code(1) } else { ExitStatus::Signal(9) };
                if !instances.is_empty() {
                    let id = &instances[which % instances.len()];
                    lab.crash(id.as_str(), Exit { status, out_of_memory: false });
                }
            }
            Step::Fault(fault) => plan(&lab, fault),
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis.into())).await,
            Step::Drop(_) => {}
        }
        settle().await;
    }
    let count = calls.len();
    let all = async {
        for call in calls {
            match call.await {
                Ok(_) => {}
                Err(error) => assert!(error.is_cancelled(), "{error}"),
            }
        }
    };
    tokio::time::timeout(secs(60), all).await.expect("every call is answered");
    assert!(lab.delivered() <= count, "no call was run twice");
    lab.executor.shut_down(secs(1)).await;
    assert_eq!(lab.adapter.count(), 0, "nothing is left");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_call_is_answered_once_and_nothing_is_left(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(live(steps));
    }
}

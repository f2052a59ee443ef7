//! Instances that do not start or do not last.

use std::time::Duration;

use adapter_fake::Fault;
use executor::{CallError, Service, SparePolicy};
use model::{Exit, ExitStatus, Scale};
use protocol::BindError;
use tokio::time::Instant;

use crate::lab::{Lab, NO_SPARES, Setup, call, killed, one, secs, settle, spawn_call};

const DAY: u64 = 24 * 3600;

fn exited(code: i32) -> Exit {
    Exit { status: ExitStatus::Code(code), out_of_memory: false }
}

fn syntax_error() -> BindError {
    BindError::Load { message: "Syntax error in main".into() }
}

#[tokio::test(start_paused = true)]
async fn a_crash_loses_its_calls_with_a_reason_and_the_next_call_works() {
    for (exit, reason) in [
        (
            killed(true),
            "The instance ran out of memory and was killed while this call was running.",
        ),
        (exited(3), "The instance exited with status 3 while this call was running."),
        // Killed by us: what the connection said is more telling.
        (killed(false), "the connection is gone"),
    ] {
        let lab = Lab::new(Setup::default());
        let service = lab.serve(one());
        call(&service, "/", secs(10)).await.expect("served");
        let lost = spawn_call(&service, "/hang", secs(600));
        settle().await;
        lab.crash("i-0", exit);
        let lost = lost.await.expect("no panic").expect_err("lost");
        assert_eq!(lost.to_string(), reason);
        let is_lost = matches!(lost, CallError::Call(protocol::CallError::Lost { .. }));
        assert!(is_lost, "it may have run");
        assert_eq!(call(&service, "/", secs(10)).await.expect("served"), "i-1");
        assert_eq!(lab.delivered(), 3, "no call was run twice");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_between_two_instances_is_not_lost() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    call(&service, "/", secs(10)).await.expect("served");
    lab.crash("i-0", killed(false));
    assert_eq!(call(&service, "/", secs(10)).await.expect("by the next one"), "i-1");
}

#[tokio::test(start_paused = true)]
async fn code_that_does_not_load_is_said_and_tried_again_less_and_less_often() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    for _ in 0..3 {
        lab.plan_bind(syntax_error());
    }
    for attempt in 1..=2 {
        let error = call(&service, "/", secs(10)).await.expect_err("it does not load");
        assert_eq!(error.to_string(), "Syntax error in main");
        assert!(matches!(error, CallError::Call(protocol::CallError::NotLoaded { .. })));
        assert_eq!(lab.adapter.launches(), attempt);
    }
    let error = call(&service, "/", secs(10)).await.expect_err("too soon");
    let CallError::BackingOff { cause, retry_after } = error else { panic!("{error:?}") };
    assert_eq!(cause.to_string(), "Syntax error in main");
    assert_eq!(lab.adapter.launches(), 2, "it was not tried");
    assert_eq!(service.load().trouble.expect("trouble").to_string(), "Syntax error in main");

    tokio::time::sleep(retry_after).await;
    call(&service, "/", secs(10)).await.expect_err("tried a third time");
    tokio::time::sleep(secs(1)).await;
    call(&service, "/", secs(10)).await.expect("it loads now");
    settle().await;
    assert_eq!(lab.adapter.count(), 1, "what did not load is gone");
    assert!(service.load().trouble.is_none(), "forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_backs_off_and_says_why() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    let mut errors = Vec::new();
    for _ in 0..200 {
        let lost = spawn_call(&service, "/hang", secs(600));
        settle().await;
        let serving = lab.executor.instances();
        if let Some(id) = serving.first().and_then(|instance| instance.id.clone()) {
            lab.crash(id.as_str(), exited(1));
        }
        errors.push(lost.await.expect("no panic").expect_err("it crashed").to_string());
        settle().await;
    }
    assert!(lab.adapter.launches() < 8, "{} launches", lab.adapter.launches());
    assert_eq!(errors[0], "The instance exited with status 1 while this call was running.");
    assert_eq!(errors[199], "The function's last instance exited with status 1.");
}

/// Serves `calls` calls, of which each ends its instance, as often as asked.
async fn exit_after_replies(lab: &Lab, service: &Service, times: usize, calls: usize, exit: Exit) {
    for _ in 0..times {
        let mut last = None;
        for _ in 0..calls {
            last = call(service, "/", secs(10)).await.ok();
        }
        if let Some(id) = last {
            lab.crash(&id, exit);
        }
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_function_that_ends_after_few_replies_backs_off_however_it_ends() {
    for exit in [exited(0), exited(1), killed(false), killed(true)] {
        for calls in [1, 5] {
            let lab = Lab::new(Setup::default());
            let service = lab.serve(one());
            exit_after_replies(&lab, &service, 200, calls, exit).await;
            assert!(lab.adapter.launches() < 8, "{exit}: {} launches", lab.adapter.launches());
            let error = call(&service, "/", secs(10)).await.expect_err("it backs off");
            let CallError::BackingOff { cause, retry_after } = error else { panic!("{error:?}") };
            assert_eq!(cause.to_string(), format!("The function's last instance {exit}."));
            assert!(retry_after > secs(1), "{retry_after:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_first_ends_calls_wait_a_moment_rather_than_fail() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    for waits_millis in [0, 0, 250, 500, 1000] {
        let begun = Instant::now();
        let id = call(&service, "/", secs(10)).await.expect("served");
        let waited = begun.elapsed().as_millis();
        // The wait began a millisecond earlier, while this test settled.
        assert!((waits_millis..=waits_millis + 50).contains(&(waited + 5)), "{waited}");
        lab.crash(&id, exited(0));
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_has_lasted_may_end_as_often_as_it_likes() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    let begun = Instant::now();
    exit_after_replies(&lab, &service, 50, 100, exited(0)).await;
    assert_eq!(lab.adapter.launches(), 50, "each after a hundred calls");
    assert!(begun.elapsed() < secs(1), "nobody waited");
    for _ in 0..20 {
        let id = call(&service, "/", secs(10)).await.expect("served");
        tokio::time::sleep(secs(10)).await;
        lab.crash(&id, exited(1));
        settle().await;
    }
    assert_eq!(lab.adapter.launches(), 70, "each after ten seconds");
    let id = call(&service, "/", secs(10)).await.expect("served");
    lab.crash(&id, exited(1));
    settle().await;
    call(&service, "/", secs(10)).await.expect("a single end is forgiven");
}

#[tokio::test(start_paused = true)]
async fn ends_that_were_asked_for_are_no_failures() {
    let lab = Lab::new(Setup { instances: 1, ..Setup::default() });
    let functions =
        ["a", "b"].map(|label| std::sync::Arc::new(lab.executor.serve(lab.revision(label, one()))));
    for _ in 0..20 {
        for function in &functions {
            call(function, "/", secs(10)).await.expect("in the place of the other");
            assert!(function.load().trouble.is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn callers_that_go_away_do_not_make_a_function_back_off() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    for _ in 0..20 {
        let id = call(&service, "/", secs(10)).await.expect("served at once");
        let given_up = spawn_call(&service, "/hang", secs(600));
        settle().await;
        given_up.abort();
        settle().await;
        // As it is replaced if it does not give the call up, too.
        lab.crash(&id, killed(false));
        settle().await;
    }
    assert_eq!(lab.adapter.launches(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_function_that_throws_is_not_a_crash_loop() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    for _ in 0..20 {
        let error = call(&service, "/fail", secs(10)).await.expect_err("it throws");
        assert!(matches!(error, CallError::Call(protocol::CallError::Failed { .. })));
    }
    assert_eq!(lab.adapter.launches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_fails_is_an_error_for_its_callers_only() {
    let lab = Lab::new(Setup::default());
    lab.adapter.plan(Fault::LaunchFails);
    let service = lab.serve(one());
    let error = call(&service, "/", secs(10)).await.expect_err("planned");
    let text = error.to_string();
    assert!(text.contains("could not launch an instance: could not start an instance"), "{text}");
    call(&service, "/", secs(10)).await.expect("the second attempt works");
}

#[tokio::test(start_paused = true)]
async fn an_attach_that_fails_leaves_nothing() {
    let lab = Lab::new(Setup::default());
    lab.adapter.plan(Fault::AttachFails);
    let service = lab.serve(one());
    call(&service, "/", secs(10)).await.expect_err("planned");
    call(&service, "/", secs(10)).await.expect("the second attempt works");
    settle().await;
    assert_eq!(lab.adapter.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_it_starts_is_an_error_and_leaves_nothing() {
    let lab = Lab::new(Setup::default());
    lab.plan_bind(BindError::Lost { why: "the worker is gone".into() });
    let service = lab.serve(one());
    let error = call(&service, "/", secs(10)).await.expect_err("planned");
    assert!(error.to_string().contains("the worker is gone"), "{error}");
    call(&service, "/", secs(10)).await.expect("the second attempt works");
    settle().await;
    assert_eq!(lab.adapter.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn how_an_instance_ended_while_it_loaded_is_said_and_it_is_not_loaded_again() {
    let spares = SparePolicy { min: 3, max: 3, keep_for: Duration::MAX };
    for spares in [NO_SPARES, spares] {
        let lab = Lab::new(Setup { spares, ..Setup::default() });
        *lab.protocol.bind_time.lock().expect("lock") = secs(1);
        let service = lab.serve(one());
        settle().await;
        let lost = spawn_call(&service, "/", secs(10));
        settle().await;
        lab.plan_bind_of("i-0", BindError::Lost { why: "the worker is gone".into() });
        lab.crash("i-0", exited(7));
        let error = lost.await.expect("no panic").expect_err("it did not load");
        let expected = "the instance exited with status 7 while it loaded the function.";
        assert!(error.to_string().ends_with(expected), "{error}");
        assert_eq!(lab.executor.instances().iter().filter(|i| i.label.is_some()).count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_covers_the_start_of_an_instance() {
    for fault in [Fault::LaunchStalls, Fault::AttachStalls] {
        let lab = Lab::new(Setup::default());
        lab.adapter.plan(fault);
        let service = lab.serve(one());
        let begun = Instant::now();
        let error = call(&service, "/", secs(5)).await.expect_err("stalled");
        let is_late = matches!(error, CallError::Call(protocol::CallError::TimedOut));
        assert!(is_late, "{error:?}");
        assert_eq!(begun.elapsed(), secs(5), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_stalls_is_given_up_and_leaves_nothing() {
    for (fault, after) in [(Fault::AttachStalls, 60), (Fault::LaunchStalls, 120)] {
        let lab = Lab::new(Setup::default());
        lab.adapter.plan(fault);
        let service = lab.serve(one());
        let begun = Instant::now();
        let error = call(&service, "/", secs(600)).await.expect_err("stalled");
        assert!(error.to_string().contains(&format!("did not start within {after}s")), "{error}");
        assert_eq!(begun.elapsed(), secs(after));
        settle().await;
        assert_eq!(lab.adapter.count(), 0, "{fault:?}");
        call(&service, "/", secs(10)).await.expect("the next works");
    }
}

#[tokio::test(start_paused = true)]
async fn what_ends_by_itself_is_not_replaced_before_it_is_wanted() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    service.ready(Instant::now() + secs(10)).await.expect("ready");
    lab.crash("i-0", killed(false));
    tokio::time::sleep(secs(3600)).await;
    assert_eq!(lab.adapter.launches(), 1);
    assert_eq!(call(&service, "/", secs(10)).await.expect("served"), "i-1");
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_replaced_less_and_less_often_if_it_does_not_last() {
    let lab = Lab::new(Setup::default());
    let _service = lab.serve(Scale { min: 1, ..one() });
    let begun = Instant::now();
    while begun.elapsed() < secs(DAY) {
        settle().await;
        for instance in lab.executor.instances() {
            if let Some(id) = instance.id {
                lab.crash(id.as_str(), killed(false));
            }
        }
        tokio::time::sleep(secs(1)).await;
    }
    let launches = lab.adapter.launches() as u64;
    assert!((DAY / 60..DAY / 29).contains(&launches), "{launches} launches in a day");
}

//! A function on a stopped clock: launches that fail, stall and crash, and what calls see of it.

mod lab;

use adapter_fake::Fault;
use executor::Mode;
use lab::{Lab, call, killed, secs, settle};
use model::{Exit, ExitStatus};
use protocol::{BindError, CallError};
use tokio::time::{Instant, timeout};

#[tokio::test(start_paused = true)]
async fn calls_that_come_before_the_instance_share_one_launch() {
    let lab = Lab::new(Mode::Shared, 0, |_| {});
    let calls = (0..50).map(|_| {
        let function = lab.function.clone();
        tokio::spawn(async move { call(&function, "/", secs(10)).await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.expect("no panic").expect("a reply"), "i-0");
    }
    assert_eq!(lab.adapter.launches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_crash_loses_its_calls_with_a_reason_and_the_next_call_works() {
    for (exit, reason) in [
        (
            killed(true),
            "The instance ran out of memory and was killed while this call was running.",
        ),
        (
            Exit { status: ExitStatus::Code(3), out_of_memory: false },
            "The instance exited with status 3 while this call was running.",
        ),
        // Killed by us: what the connection said is more telling.
        (killed(false), "the connection is gone"),
    ] {
        let lab = Lab::new(Mode::Shared, 0, |_| {});
        lab.call("/").await.expect("served");
        let function = lab.function.clone();
        let lost = tokio::spawn(async move { call(&function, "/hang", secs(600)).await });
        settle().await;
        lab.crash("i-0", exit);
        let lost = lost.await.expect("no panic").expect_err("lost");
        assert_eq!(lost.to_string(), reason);
        assert!(matches!(lost, CallError::Lost { .. }), "it may have run");
        assert_eq!(lab.call("/").await.expect("served"), "i-1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_between_two_instances_is_not_lost() {
    let lab = Lab::new(Mode::Shared, 0, |_| {});
    lab.call("/").await.expect("served");
    lab.crash("i-0", killed(false));
    assert_eq!(lab.call("/").await.expect("delivered to the next one"), "i-1");
}

#[tokio::test(start_paused = true)]
async fn code_that_does_not_load_is_tried_again_at_each_call() {
    let lab = Lab::new(Mode::Shared, 0, |_| {});
    let failure = || BindError::Load { message: "Syntax error in main".into() };
    *lab.protocol.next_bind.lock().expect("lock") = Some(failure());
    lab.function.settled().await;
    *lab.protocol.next_bind.lock().expect("lock") = Some(failure());
    let error = lab.call("/").await.expect_err("still broken");
    assert!(
        matches!(&error, CallError::NotLoaded { message } if message == "Syntax error in main")
    );
    lab.call("/").await.expect("loads now");
    settle().await;
    assert_eq!(lab.adapter.count(), 1, "what did not load is gone");
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_fails_is_an_error_for_its_callers_only() {
    let lab = Lab::new(Mode::Shared, 0, |adapter| {
        adapter.plan(Fault::LaunchFails);
        adapter.plan(Fault::LaunchFails);
    });
    lab.function.settled().await;
    let error = lab.call("/").await.expect_err("planned");
    let text = error.to_string();
    assert!(text.contains("could not launch an instance: could not start an instance"), "{text}");
    lab.call("/").await.expect("the third attempt works");
}

#[tokio::test(start_paused = true)]
async fn an_attach_that_fails_leaves_nothing() {
    let lab = Lab::new(Mode::Shared, 0, |adapter| adapter.plan(Fault::AttachFails));
    lab.function.settled().await;
    lab.call("/").await.expect("the second attempt works");
    settle().await;
    assert_eq!(lab.adapter.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_covers_the_start_of_an_instance() {
    for fault in [Fault::LaunchStalls, Fault::AttachStalls] {
        let lab = Lab::new(Mode::Shared, 0, |adapter| adapter.plan(fault));
        let begun = Instant::now();
        let error = call(&lab.function, "/", secs(5)).await.expect_err("stalled");
        assert!(matches!(error, CallError::TimedOut), "{error:?}");
        assert_eq!(begun.elapsed(), secs(5), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_attach_is_given_up_after_the_bind_timeout() {
    let lab = Lab::new(Mode::Shared, 0, |adapter| adapter.plan(Fault::AttachStalls));
    let begun = Instant::now();
    let error = lab.call("/").await.expect_err("stalled");
    assert!(error.to_string().contains("did not load within 60s"), "{error}");
    assert_eq!(begun.elapsed(), secs(60));
    lab.call("/").await.expect("the next works");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_ends_unused_is_not_replaced_before_it_is_wanted() {
    let lab = Lab::new(Mode::Shared, 0, |_| {});
    lab.function.settled().await;
    lab.crash("i-0", killed(false));
    tokio::time::sleep(secs(3600)).await;
    assert_eq!(lab.adapter.launches(), 1, "a crash loop would heat the machine");
    assert_eq!(lab.call("/").await.expect("served"), "i-1");
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_limit_are_refused_at_once() {
    let lab = Lab::new(Mode::Shared, 0, |_| {});
    lab.call("/").await.expect("served");
    let mut hanging = Vec::new();
    for _ in 0..100 {
        let function = lab.function.clone();
        hanging.push(tokio::spawn(async move { call(&function, "/hang", secs(600)).await }));
    }
    settle().await;
    let error = lab.call("/").await.expect_err("full");
    assert!(error.is_safe_to_retry(), "{error:?}");
    assert_eq!(error.to_string(), "The function is at its limit of 100 calls.");
    hanging.pop().expect("a call").abort();
    settle().await;
    lab.call("/").await.expect("a dropped call has left its place");
}

#[tokio::test(start_paused = true)]
async fn a_fresh_call_gets_an_instance_of_its_own() {
    let lab = Lab::new(Mode::Fresh, 0, |_| {});
    for expected in ["i-0", "i-1", "i-2"] {
        assert_eq!(lab.call("/").await.expect("served"), expected);
    }
    settle().await;
    assert_eq!(lab.adapter.count(), 0, "each is gone after its call");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_fresh_call_stops_its_instance() {
    let lab = Lab::new(Mode::Fresh, 0, |_| {});
    timeout(secs(1), lab.call("/hang")).await.expect_err("it hangs");
    settle().await;
    assert_eq!(lab.adapter.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn spares_wait_and_are_replaced_when_taken_or_dead() {
    let lab = Lab::new(Mode::Fresh, 3, |_| {});
    settle().await;
    assert_eq!((lab.stock.count(), lab.adapter.launches()), (3, 3));

    assert_eq!(lab.call("/").await.expect("served"), "i-0", "the one that waited longest");
    settle().await;
    assert_eq!((lab.stock.count(), lab.adapter.launches()), (3, 4));

    lab.crash("i-1", killed(false));
    assert_eq!(lab.call("/").await.expect("served"), "i-2", "a dead spare is passed over");
    tokio::time::sleep(secs(1)).await;
    assert_eq!(lab.stock.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn spares_that_cannot_be_made_are_tried_again_slowly() {
    let lab = Lab::new(Mode::Fresh, 1, |adapter| {
        for _ in 0..10 {
            adapter.plan(Fault::LaunchFails);
        }
    });
    tokio::time::sleep(secs(5)).await;
    assert!(lab.adapter.launches() <= 6, "{} launches in five seconds", lab.adapter.launches());
    tokio::time::sleep(secs(60)).await;
    assert_eq!(lab.stock.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_after_the_shut_down() {
    for mode in [Mode::Shared, Mode::Fresh] {
        let lab = Lab::new(mode, 2, |_| {});
        lab.call("/").await.expect("served");
        settle().await;
        assert!(lab.adapter.count() >= 2);
        assert_eq!(lab.shut_down().await.count(), 0, "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_is_given_up_leaves_nothing() {
    let lab = Lab::new(Mode::Fresh, 0, |adapter| adapter.plan(Fault::LaunchStalls));
    let error = call(&lab.function, "/", secs(5)).await.expect_err("stalled");
    assert!(matches!(error, CallError::TimedOut), "{error:?}");
    settle().await;
    assert_eq!(lab.adapter.count(), 0, "nobody else knows of it");
}

//! How many instances there are, and what a full host does.

use executor::CallError;
use model::Scale;
use tokio::time::Instant;

use crate::lab::{Lab, Setup, call, one, secs, settle, single, spawn_call};

#[tokio::test(start_paused = true)]
async fn a_burst_on_a_cold_function_launches_what_it_needs_and_loses_nothing() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(Scale { concurrency: 50, max: 10, ..one() });
    let calls: Vec<_> = (0..200).map(|_| spawn_call(&service, "/sleep/100", secs(10))).collect();
    for call in calls {
        call.await.expect("no panic").expect("a reply");
    }
    assert_eq!(lab.adapter.launches(), 4);
    assert_eq!(lab.delivered(), 200);
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_most_instances_wait_for_their_turn() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(single(3));
    let begun = Instant::now();
    let calls: Vec<_> = (0..9).map(|_| spawn_call(&service, "/sleep/1000", secs(10))).collect();
    for call in calls {
        call.await.expect("no panic").expect("a reply");
    }
    assert_eq!(lab.adapter.launches(), 3);
    assert_eq!(begun.elapsed(), secs(3), "three rounds of three");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once_and_says_when_to_ask_again() {
    let lab = Lab::new(Setup { waiting: 5, ..Setup::default() });
    let service = lab.serve(single(1));
    let _running = spawn_call(&service, "/hang", secs(30));
    settle().await;
    let _waiting: Vec<_> = (0..5).map(|_| spawn_call(&service, "/hang", secs(30))).collect();
    settle().await;
    let begun = Instant::now();
    let error = call(&service, "/", secs(10)).await.expect_err("full");
    assert_eq!(begun.elapsed(), secs(0));
    let CallError::Busy { why, retry_after } = error else { panic!("{error:?}") };
    assert_eq!(why, "5 calls wait for the function already.");
    assert!(!retry_after.is_zero());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waited_in_vain_is_told_that_there_was_no_room() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(single(1));
    let _busy = spawn_call(&service, "/hang", secs(600));
    settle().await;
    let begun = Instant::now();
    let error = call(&service, "/", secs(4)).await.expect_err("busy");
    assert_eq!(begun.elapsed(), secs(4), "its own deadline");
    assert!(matches!(&error, CallError::Busy { why, .. } if why.contains("busy")), "{error:?}");
    assert_eq!(lab.delivered(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_instance_is_stopped_after_its_time() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(Scale { idle: secs(60), ..one() });
    call(&service, "/", secs(10)).await.expect("served");
    tokio::time::sleep(secs(59)).await;
    assert_eq!(lab.adapter.count(), 1, "still within its time");
    tokio::time::sleep(secs(3)).await;
    assert_eq!(lab.adapter.count(), 0);
    call(&service, "/", secs(10)).await.expect("from nothing again");
}

#[tokio::test(start_paused = true)]
async fn a_busy_instance_is_never_idle() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(Scale { idle: secs(5), ..one() });
    call(&service, "/sleep/60000", secs(100)).await.expect("it was left alone");
}

#[tokio::test(start_paused = true)]
async fn the_least_is_kept_and_there_from_the_beginning() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(Scale { min: 2, max: 5, idle: secs(5), ..single(5) });
    settle().await;
    assert_eq!(service.load().serving, 2, "nobody has called yet");
    let calls: Vec<_> = (0..5).map(|_| spawn_call(&service, "/sleep/100", secs(10))).collect();
    for call in calls {
        call.await.expect("no panic").expect("a reply");
    }
    assert_eq!(service.load().serving, 5);
    tokio::time::sleep(secs(3600)).await;
    assert_eq!(service.load().serving, 2);
    assert_eq!(lab.adapter.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_host_evicts_what_was_not_used_for_the_longest_time() {
    let lab = Lab::new(Setup { instances: 3, ..Setup::default() });
    let functions: Vec<_> = ["a", "b", "c", "d"]
        .map(|label| std::sync::Arc::new(lab.executor.serve(lab.revision(label, one()))))
        .into();
    for function in &functions[..3] {
        call(function, "/", secs(10)).await.expect("served");
        tokio::time::sleep(secs(1)).await;
    }
    call(&functions[0], "/", secs(10)).await.expect("still warm");
    tokio::time::sleep(secs(1)).await;
    call(&functions[3], "/", secs(10)).await.expect("in the place of b");
    settle().await;
    let labels = || {
        let instances = lab.executor.instances().into_iter();
        instances.filter_map(|instance| instance.label).collect::<Vec<_>>()
    };
    tokio::time::sleep(secs(2)).await;
    assert_eq!(labels(), ["a", "c", "d"]);
    assert_eq!(lab.adapter.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_full_host_never_evicts_a_running_call_or_what_must_be_kept() {
    let lab = Lab::new(Setup { instances: 2, ..Setup::default() });
    let kept = lab.executor.serve(lab.revision("kept", Scale { min: 1, ..one() }));
    let busy = std::sync::Arc::new(lab.executor.serve(lab.revision("busy", one())));
    let running = spawn_call(&busy, "/sleep/10000", secs(60));
    settle().await;
    let other = std::sync::Arc::new(lab.executor.serve(lab.revision("other", one())));
    let error = call(&other, "/", secs(5)).await.expect_err("no room");
    assert!(matches!(&error, CallError::Busy { why, .. } if why.contains("full")), "{error:?}");
    let begun = Instant::now();
    call(&other, "/", secs(30)).await.expect("once the call is over");
    assert!(begun.elapsed() <= secs(6), "{:?}", begun.elapsed());
    running.await.expect("no panic").expect("it was not disturbed");
    assert_eq!(kept.load().serving, 1);
}

#[tokio::test(start_paused = true)]
async fn a_function_without_a_place_gets_one_from_a_function_with_several() {
    let lab = Lab::new(Setup { instances: 4, ..Setup::default() });
    let greedy = std::sync::Arc::new(lab.executor.serve(lab.revision("greedy", single(4))));
    let flood: Vec<_> = (0..400).map(|_| spawn_call(&greedy, "/sleep/1000", secs(600))).collect();
    settle().await;
    let modest = std::sync::Arc::new(lab.executor.serve(lab.revision("modest", one())));
    let begun = Instant::now();
    call(&modest, "/", secs(60)).await.expect("it is its turn");
    assert!(begun.elapsed() <= secs(2), "{:?}", begun.elapsed());
    for call in flood {
        call.await.expect("no panic").expect("a reply, later");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_places_are_all_kept_says_so_at_once() {
    let lab = Lab::new(Setup { instances: 3, ..Setup::default() });
    let serve = |label, scale| std::sync::Arc::new(lab.executor.serve(lab.revision(label, scale)));
    let kept = serve("kept", Scale { min: 3, ..single(3) });
    let _busy = spawn_call(&kept, "/hang", secs(600));
    settle().await;
    let other = serve("other", one());
    let begun = Instant::now();
    let error = other.ready(begun + secs(120)).await.expect_err("no place can come free");
    assert_eq!(begun.elapsed(), secs(0));
    assert!(matches!(&error, CallError::Busy { why, .. } if why.contains("--min")), "{error:?}");
    kept.keep(2);
    other.ready(Instant::now() + secs(10)).await.expect("in the place that is not kept any more");
    assert_eq!(kept.load().serving, 2, "the busy one is one of them");
}

#[tokio::test(start_paused = true)]
async fn long_calls_of_one_function_leave_places_for_others() {
    let lab = Lab::new(Setup { instances: 8, reserve: 1, ..Setup::default() });
    let serve = |label, scale| std::sync::Arc::new(lab.executor.serve(lab.revision(label, scale)));
    let greedy = serve("greedy", single(8));
    let _long: Vec<_> = (0..100).map(|_| spawn_call(&greedy, "/sleep/60000", secs(600))).collect();
    settle().await;
    assert_eq!(greedy.load().serving, 7, "one place is kept");
    for label in ["a", "b", "c", "d"] {
        let modest = serve(label, one());
        let begun = Instant::now();
        call(&modest, "/", secs(15)).await.expect("in the place that is kept");
        assert!(begun.elapsed() < secs(1), "{label}: {:?}", begun.elapsed());
        settle().await;
    }
    assert_eq!(greedy.load().serving, 7, "no running call was cut off");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_kept_and_taken_is_paid_back_by_the_function_with_most() {
    let lab = Lab::new(Setup { instances: 8, reserve: 1, ..Setup::default() });
    let serve = |label, scale| std::sync::Arc::new(lab.executor.serve(lab.revision(label, scale)));
    let greedy = serve("greedy", single(8));
    let _long: Vec<_> = (0..100).map(|_| spawn_call(&greedy, "/sleep/60000", secs(600))).collect();
    settle().await;
    let mut others = Vec::new();
    for label in ["a", "b", "c"] {
        let other = serve(label, one());
        others.push(spawn_call(&other, "/hang", secs(3600)));
        settle().await;
        assert_eq!(other.load().serving, 1, "{label} has a place at once");
        tokio::time::sleep(secs(70)).await;
    }
    assert_eq!(greedy.load().serving, 4);
    assert!(others.iter().all(|call| !call.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn functions_that_want_more_than_there_is_get_equal_shares() {
    let lab = Lab::new(Setup { instances: 9, reserve: 0, ..Setup::default() });
    let serve = |label| std::sync::Arc::new(lab.executor.serve(lab.revision(label, single(9))));
    let flood = |service, calls| {
        (0..calls).map(|_| spawn_call(service, "/sleep/2000", secs(600))).collect::<Vec<_>>()
    };
    let functions = ["a", "b", "c"].map(serve);
    // The first takes all, and its calls would wait before all others'.
    let _first = flood(&functions[0], 900);
    tokio::time::sleep(secs(1)).await;
    let _others = [flood(&functions[1], 500), flood(&functions[2], 500)];
    tokio::time::sleep(secs(10)).await;
    for function in &functions {
        assert_eq!(function.load().serving, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_function_that_fills_the_queue_makes_room_for_others_that_wait() {
    let lab = Lab::new(Setup { instances: 1, waiting: 8, ..Setup::default() });
    let serve = |label| std::sync::Arc::new(lab.executor.serve(lab.revision(label, single(1))));
    let [greedy, modest] = ["greedy", "modest"].map(serve);
    let mut flood: Vec<_> = (0..9).map(|_| spawn_call(&greedy, "/sleep/1000", secs(600))).collect();
    settle().await;
    let modest = spawn_call(&modest, "/", secs(600));
    settle().await;
    let last = flood.pop().expect("nine");
    let error = last.await.expect("no panic").expect_err("the last of too many");
    assert!(matches!(&error, CallError::Busy { why, .. } if why.starts_with("8 calls")), "{error}");
    modest.await.expect("no panic").expect("its turn comes");
    for call in flood {
        call.await.expect("no panic").expect("those that came before are served");
    }
}

#[tokio::test(start_paused = true)]
async fn a_single_use_instance_takes_one_call() {
    let lab = Lab::new(Setup::default());
    let mut revision = lab.revision("i", single(10));
    revision.is_single_use = true;
    let service = std::sync::Arc::new(lab.executor.serve(revision));
    for expected in ["i-0", "i-1", "i-2"] {
        assert_eq!(call(&service, "/", secs(10)).await.expect("served"), expected);
    }
    tokio::time::sleep(secs(2)).await;
    assert_eq!(lab.adapter.count(), 0, "each is gone after its call");
    let dropped = spawn_call(&service, "/hang", secs(600));
    settle().await;
    dropped.abort();
    tokio::time::sleep(secs(2)).await;
    assert_eq!(lab.adapter.count(), 0, "also after a call that was given up");
}

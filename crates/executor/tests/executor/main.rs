//! The executor on a stopped clock: launches that fail, stall and crash, full hosts, and what calls
//! see of it.

mod failures;
mod histories;
mod lab;
mod scale;
mod spares;

use std::sync::Arc;

use executor::Progress;
use lab::{Lab, Setup, call, call_with, one, secs, settle, single, spawn_call};
use tokio::time::{Instant, timeout};

#[tokio::test(start_paused = true)]
async fn calls_that_come_before_the_instance_share_one_launch() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    let calls: Vec<_> = (0..50).map(|_| spawn_call(&service, "/", secs(10))).collect();
    for call in calls {
        assert_eq!(call.await.expect("no panic").expect("a reply"), "i-0");
    }
    assert_eq!(lab.adapter.launches(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_cold_call_is_explained() {
    let lab = Lab::new(Setup::default());
    *lab.protocol.bind_time.lock().expect("lock") = secs(2);
    let service = lab.serve(one());
    let early = spawn_call(&service, "/", secs(10));
    tokio::time::sleep(secs(1)).await;
    let progress = Progress::default();
    call_with(&service, "/sleep/3000", secs(10), &progress).await.expect("served");
    early.await.expect("no panic").expect("served");
    let phases = progress.phases();
    assert_eq!(phases.bind, secs(1), "it joined half-way");
    assert_eq!(phases.call, secs(3));
    assert_eq!((phases.wait + phases.spare + phases.attach).as_millis(), 0);
    assert_eq!(progress.instance().expect("it ran").as_str(), "i-0");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_was_only_made_ready_has_taken_no_call() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    service.ready(Instant::now() + secs(10)).await.expect("ready");
    assert_eq!(lab.executor.instances()[0].calls, 0);
    call(&service, "/", secs(10)).await.expect("served");
    assert_eq!((lab.executor.instances()[0].calls, lab.executor.calls()), (1, (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_retired_service_finishes_its_calls_and_no_more() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(single(3));
    let running = spawn_call(&service, "/sleep/5000", secs(60));
    call(&service, "/", secs(10)).await.expect("served");
    settle().await;
    assert_eq!(lab.adapter.count(), 2);
    let begun = Instant::now();
    service.retire(secs(30)).await;
    running.await.expect("no panic").expect("it was let finish");
    assert!((secs(4)..secs(6)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    settle().await;
    assert_eq!(lab.adapter.count(), 0);
    let error = call(&service, "/", secs(10)).await.expect_err("it is gone");
    assert!(error.to_string().contains("removed or replaced"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_retired_service_ends_when_its_time_is_over() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    let hanging = spawn_call(&service, "/hang", secs(600));
    settle().await;
    service.retire(secs(7)).await;
    hanging.await.expect("no panic").expect_err("it was cut off");
    settle().await;
    assert_eq!(lab.adapter.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_dropped_goes() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(one());
    call(&service, "/", secs(10)).await.expect("served");
    drop(service);
    tokio::time::sleep(secs(2)).await;
    assert_eq!(lab.adapter.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_after_the_shut_down() {
    let lab = Lab::new(Setup { spares: executor::SparePolicy::default(), ..Setup::default() });
    let service = lab.serve(single(5));
    let hanging = spawn_call(&service, "/hang", secs(600));
    call(&service, "/", secs(10)).await.expect("served");
    settle().await;
    assert!(lab.adapter.count() >= 2);
    lab.executor.shut_down(secs(30)).await;
    assert_eq!(lab.adapter.count(), 0);
    hanging.await.expect("no panic").expect_err("it was cut off");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_leaves_its_place() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(single(1));
    let running = spawn_call(&service, "/hang", secs(600));
    let queued = spawn_call(&service, "/hang", secs(600));
    settle().await;
    assert_eq!((service.load().in_flight, service.load().waiting), (1, 1));
    queued.abort();
    settle().await;
    assert_eq!(service.load().waiting, 0);
    running.abort();
    call(&service, "/", secs(1)).await.expect("there is room again");
}

fn call_of(path: &str) -> protocol::Call {
    protocol::Call {
        head: Arc::new(protocol::CallHead { path: path.into(), ..Default::default() }),
        body: protocol::Body::default(),
        deadline: None,
        log: None,
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_call_that_was_given_up_is_noted() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(single(1));
    let (running, waiting) = (Progress::default(), Progress::default());
    let both = async {
        tokio::join!(
            service.call(call_of("/hang"), &running),
            service.call(call_of("/hang"), &waiting)
        )
    };
    timeout(secs(5), both).await.expect_err("neither ends");
    assert_eq!((running.phases().call, running.phases().wait), (secs(5), secs(0)));
    assert_eq!((waiting.phases().call, waiting.phases().wait), (secs(0), secs(5)));
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_complete_leaves_its_place_before_it_is_read() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(single(1));
    let mut reply = service.call(call_of("/parts"), &Progress::default()).await.expect("a head");
    crate::call(&service, "/", secs(2)).await.expect("the place is free");
    let mut rest = reply.body.rest.take().expect("more was announced");
    let part = std::future::poll_fn(|cx| rest.as_mut().poll_next(cx)).await;
    assert_eq!(part.expect("a part").expect("whole"), "part");
    assert!(std::future::poll_fn(|cx| rest.as_mut().poll_next(cx)).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_still_coming_keeps_its_place() {
    let lab = Lab::new(Setup::default());
    let service = lab.serve(single(1));
    let reply = service.call(call_of("/stream"), &Progress::default()).await.expect("a head");
    assert_eq!(service.load().in_flight, 1);
    timeout(secs(5), crate::call(&service, "/", secs(2)))
        .await
        .expect("in time")
        .expect_err("the only place is taken");
    drop(reply);
    crate::call(&service, "/", secs(2)).await.expect("free again");
}

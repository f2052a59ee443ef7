//! Instances that wait, unbound.

use std::{sync::Arc, time::Duration};

use adapter_fake::Fault;
use executor::SparePolicy;

use crate::lab::{Lab, Setup, call, killed, secs, settle, single, spawn_call};

fn exactly(count: u32) -> Setup {
    let spares = SparePolicy { min: count, max: count, keep_for: Duration::MAX };
    Setup { spares, ..Setup::default() }
}

#[tokio::test(start_paused = true)]
async fn spares_wait_and_are_replaced_when_taken_or_dead() {
    let lab = Lab::new(exactly(3));
    let mut revision = lab.revision("i", single(10));
    revision.is_single_use = true;
    let stock = revision.stock.clone();
    let service = lab.executor.serve(revision);
    settle().await;
    assert_eq!((stock.report().waiting, lab.adapter.launches()), (3, 3));

    let first = call(&service, "/", secs(10)).await.expect("served");
    assert_eq!(first, "i-0", "the one that waited longest");
    settle().await;
    assert_eq!(stock.report().waiting, 2, "its call comes first");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((stock.report().waiting, lab.adapter.launches()), (3, 4));

    lab.crash("i-1", killed(false));
    let second = call(&service, "/", secs(10)).await.expect("served");
    assert_eq!(second, "i-2", "a dead spare is passed over");
    tokio::time::sleep(secs(1)).await;
    assert_eq!(stock.report().waiting, 3);
    assert_eq!((stock.report().from_stock, stock.report().from_nothing), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn spares_that_cannot_be_made_are_tried_again_slowly() {
    let lab = Lab::new(exactly(1));
    for _ in 0..10 {
        lab.adapter.plan(Fault::LaunchFails);
    }
    let stock = lab.revision("i", single(1)).stock;
    tokio::time::sleep(secs(5)).await;
    assert!(lab.adapter.launches() <= 6, "{} launches in five seconds", lab.adapter.launches());
    tokio::time::sleep(secs(60)).await;
    assert_eq!(stock.report().waiting, 1);
}

#[tokio::test(start_paused = true)]
async fn spares_follow_the_cold_starts_and_go_when_unused() {
    let lab = Lab::new(Setup { spares: SparePolicy::default(), ..Setup::default() });
    *lab.protocol.ready_time.lock().expect("lock") = Duration::from_millis(50);
    let mut revision = lab.revision("i", single(50));
    revision.is_single_use = true;
    let stock = revision.stock.clone();
    let service = Arc::new(lab.executor.serve(revision));
    tokio::time::sleep(secs(1)).await;
    assert_eq!(stock.report().waiting, 1, "a runtime in use has one");
    for _ in 0..300 {
        let served = spawn_call(&service, "/", secs(10));
        tokio::time::sleep(Duration::from_millis(100)).await;
        served.await.expect("no panic").expect("served");
    }
    let busy = stock.report().waiting;
    assert!(busy >= 2, "{busy} spares at ten cold starts a second");
    tokio::time::sleep(secs(120)).await;
    assert_eq!(stock.report().waiting, 1, "it is quiet");
    tokio::time::sleep(secs(600)).await;
    assert_eq!((stock.report().waiting, lab.adapter.count()), (0, 0), "nobody uses the runtime");
    call(&service, "/", secs(10)).await.expect("from nothing");
    tokio::time::sleep(secs(1)).await;
    assert_eq!(stock.report().waiting, 1, "in use again");
}

#[tokio::test(start_paused = true)]
async fn spares_count_among_the_hosts_instances_and_make_room() {
    let spares = SparePolicy { min: 1, max: 1, keep_for: Duration::MAX };
    let lab = Lab::new(Setup { instances: 3, spares, ..Setup::default() });
    let services: Vec<_> =
        ["a", "b", "c"].map(|label| lab.executor.serve(lab.revision(label, single(1)))).into();
    settle().await;
    assert_eq!(lab.adapter.count(), 3, "a spare each");
    for service in &services {
        call(service, "/", secs(10)).await.expect("served");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(lab.adapter.count() <= 3, "{} instances", lab.adapter.count());
    }
}

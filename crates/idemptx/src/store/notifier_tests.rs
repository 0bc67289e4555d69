//! The notifier's tests, and its schedules: `scheduled` is the same file with the locks of shuttle,
//! which chooses at each of them which thread goes on, and finds a task that is never woken.

#[expect(clippy::duplicate_mod, reason = "with other locks")]
#[path = "notifier.rs"]
#[allow(dead_code, reason = "the stores use the other copy")]
mod scheduled;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idemptx_core::key::RecordId;
use shuttle::future::block_on;
use shuttle::{sync, thread};
use tokio::time::timeout;

use super::notifier::Notifier;

const ID: RecordId = RecordId::from_bytes([0xA7; RecordId::BYTES]);

#[tokio::test]
async fn a_notification_wakes_the_tasks_of_its_record_only() {
    let notifier = std::sync::Arc::new(Notifier::default());
    let other = notifier.watch(RecordId::from_bytes([1; RecordId::BYTES]));
    let woken = notifier.watch(ID);
    notifier.notify(&ID);
    woken.into_watch().await;
    assert_eq!(notifier.len(), 1);
    drop(other);
    assert_eq!(notifier.len(), 0);
}

#[tokio::test]
async fn the_last_dropped_handle_removes_the_entry() {
    let notifier = std::sync::Arc::new(Notifier::default());
    let (first, second) = (notifier.watch(ID), notifier.watch(ID));
    drop(first);
    assert_eq!(notifier.len(), 1);
    drop(second.into_watch());
    assert_eq!(notifier.len(), 0);
}

#[tokio::test]
async fn a_handle_dropped_after_its_notification_leaves_later_tasks_registered() {
    let notifier = std::sync::Arc::new(Notifier::default());
    let first = notifier.watch(ID);
    notifier.notify(&ID);
    let second = notifier.watch(ID);
    drop(first);
    assert_eq!(notifier.len(), 1);
    notifier.notify(&ID);
    second.into_watch().await;
}

#[cfg(any(feature = "postgres", feature = "redis"))]
#[tokio::test]
async fn the_end_of_a_connection_wakes_all_tasks() {
    let notifier = std::sync::Arc::new(Notifier::default());
    let handle = notifier.watch(ID);
    drop(notifier.source());
    handle.into_watch().await;
}

#[tokio::test]
async fn a_notification_by_another_thread_is_never_lost() {
    let notifier = std::sync::Arc::new(Notifier::default());
    let is_over = std::sync::Arc::new(AtomicBool::new(false));
    let notifying = std::thread::spawn({
        let (notifier, is_over) = (notifier.clone(), is_over.clone());
        move || {
            while !is_over.load(Ordering::Relaxed) {
                notifier.notify(&ID);
            }
        }
    });
    for _ in 0..20_000 {
        let handle = notifier.watch(ID);
        timeout(Duration::from_secs(30), handle.into_watch()).await.expect("it is woken");
    }
    is_over.store(true, Ordering::Relaxed);
    notifying.join().expect("the thread ends");
}

#[test]
fn no_schedule_loses_a_wake_up_or_leaves_a_registration() {
    check(|| {
        let notifier = sync::Arc::new(scheduled::Notifier::default());
        let changes = sync::Arc::new(sync::atomic::AtomicUsize::new(0));
        let waiting: Vec<_> = (1..=WAITERS)
            .map(|wanted| {
                let (notifier, changes) = (notifier.clone(), changes.clone());
                // Each registers again for every change, as one does who still finds a claim.
                thread::spawn(move || {
                    while {
                        let handle = notifier.watch(ID);
                        let is_over = changes.load(Ordering::SeqCst) >= wanted;
                        if !is_over {
                            block_on(handle.into_watch());
                        }
                        !is_over
                    } {}
                })
            })
            .collect();
        let leaving = {
            let notifier = notifier.clone();
            thread::spawn(move || drop((notifier.watch(ID), notifier.watch(ID).into_watch())))
        };
        for _ in 0..WAITERS {
            changes.fetch_add(1, Ordering::SeqCst);
            notifier.notify(&ID);
        }
        waiting.into_iter().for_each(|waiter| waiter.join().unwrap());
        leaving.join().unwrap();
        assert_eq!(notifier.len(), 0);
    });
}

#[cfg(any(feature = "postgres", feature = "redis"))]
#[test]
fn no_schedule_loses_what_the_end_of_a_connection_wakes() {
    check(|| {
        let notifier = sync::Arc::new(scheduled::Notifier::default());
        let is_cut = sync::Arc::new(sync::atomic::AtomicBool::new(false));
        let source = notifier.source();
        let waiting: Vec<_> = [ID, OTHER]
            .map(|id| {
                let (notifier, is_cut) = (notifier.clone(), is_cut.clone());
                thread::spawn(move || {
                    let handle = notifier.watch(id);
                    if !is_cut.load(Ordering::SeqCst) {
                        block_on(handle.into_watch());
                    }
                })
            })
            .into();
        source.notify(&OTHER);
        is_cut.store(true, Ordering::SeqCst);
        drop(source);
        waiting.into_iter().for_each(|waiter| waiter.join().unwrap());
        assert_eq!(notifier.len(), 0);
    });
}

#[cfg(feature = "sqlite")]
#[test]
fn no_schedule_lets_the_polling_thread_miss_a_task_or_the_end() {
    use idemptx_core::lease::Token;

    const CLAIMS: u8 = 3;
    let claim = |number| (number < CLAIMS).then(|| Token::from_bytes([number; Token::BYTES]));
    check(move || {
        let notifier = sync::Arc::new(scheduled::Notifier::default());
        // One claim follows another, until there is none.
        let number = sync::Arc::new(sync::atomic::AtomicU8::new(0));
        let found = {
            let number = number.clone();
            move || claim(number.load(Ordering::SeqCst))
        };
        let polling = {
            let (notifier, found) = (notifier.clone(), found.clone());
            thread::spawn(move || {
                while let Some(watched) = notifier.wait_for_watched() {
                    for (id, token) in watched {
                        if found().is_none() || token.is_some_and(|token| found() != Some(token)) {
                            notifier.notify(&id);
                        }
                    }
                    thread::yield_now();
                }
            })
        };
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let (notifier, found) = (notifier.clone(), found.clone());
                thread::spawn(move || {
                    while {
                        let handle = notifier.watch(ID);
                        let token = found();
                        handle.expect(token);
                        block_on(handle.into_watch());
                        token.is_some()
                    } {}
                })
            })
            .collect();
        for _ in 0..CLAIMS {
            number.fetch_add(1, Ordering::SeqCst);
        }
        waiting.into_iter().for_each(|waiter| waiter.join().unwrap());
        notifier.close();
        polling.join().unwrap();
        assert_eq!(notifier.len(), 0);
    });
}

/// Tokio's primitives, where each call may be a change of thread.
mod tasks {
    use std::sync::Arc;

    use shuttle::sync::atomic::{AtomicUsize, Ordering};

    pub(super) use tokio::sync::futures;

    #[derive(Debug)]
    pub(super) struct Notify {
        tasks: Arc<tokio::sync::Notify>,
        calls: AtomicUsize,
    }

    impl Notify {
        pub(super) fn new() -> Self {
            Self { tasks: Arc::default(), calls: AtomicUsize::new(0) }
        }

        pub(super) fn notified_owned(self: Arc<Self>) -> futures::OwnedNotified {
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.tasks.clone().notified_owned()
        }

        pub(super) fn notify_waiters(&self) {
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.tasks.notify_waiters();
        }
    }
}

/// Runs it under schedules drawn at random, and under those that need few changes of thread.
fn check(scenario: impl Fn() + Clone + Send + Sync + 'static) {
    shuttle::check_random(scenario.clone(), SCHEDULES);
    shuttle::check_pct(scenario, SCHEDULES, 3);
}

const OTHER: RecordId = RecordId::from_bytes([1; RecordId::BYTES]);
const WAITERS: usize = 3;
const SCHEDULES: usize = 2000;

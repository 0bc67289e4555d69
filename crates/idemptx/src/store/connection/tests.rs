use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::time::advance;

use super::*;

/// A server that answers each attempt to connect as the test has planned.
#[derive(Default)]
struct Script {
    attempts: Mutex<VecDeque<Result<(), Trouble>>>,
    connects: AtomicUsize,
    answers: tokio::sync::Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Refused(Fate),
    Dropped(Fate),
    TimedOut(Fate),
    Crowded(Fate),
}

impl Trouble {
    fn with(self, fate: Fate) -> Self {
        match self {
            Self::Refused(_) => Self::Refused(fate),
            Self::Dropped(_) => Self::Dropped(fate),
            Self::TimedOut(_) => Self::TimedOut(fate),
            Self::Crowded(_) => Self::Crowded(fate),
        }
    }
}

impl StepFailure for Trouble {
    fn is_spent(&self) -> bool {
        self.is_dropped()
    }

    fn is_dropped(&self) -> bool {
        matches!(self, Self::Dropped(_))
    }

    fn unsent(self) -> Self {
        self.with(Fate::Unsent)
    }

    fn in_doubt(self) -> Self {
        self.with(Fate::InDoubt)
    }
}

impl Connect for Arc<Script> {
    type Live = usize;
    type Failure = Trouble;

    async fn connect(&self) -> Result<usize, Trouble> {
        let number = self.connects.fetch_add(1, Ordering::Relaxed);
        let planned = self.attempts.lock().unwrap().pop_front();
        planned.unwrap_or(Ok(())).map(|()| number)
    }

    fn is_closed(&self, _: &usize) -> bool {
        false
    }

    async fn drain(&self, _: &usize) {
        self.answers.notified().await;
    }

    fn keeps_sessions(&self) -> bool {
        true
    }

    fn step_limit(&self) -> Duration {
        LIMIT
    }

    fn timed_out(&self, _: Duration) -> Trouble {
        Trouble::TimedOut(Fate::Sent)
    }

    fn crowded(&self) -> Trouble {
        Trouble::Crowded(Fate::Sent)
    }

    fn no_runtime(&self) -> Trouble {
        Trouble::Refused(Fate::Sent)
    }
}

fn connection(attempts: &[Result<(), Trouble>]) -> (Arc<Script>, Arc<Connection<Arc<Script>>>) {
    let script = Arc::new(Script::default());
    script.attempts.lock().unwrap().extend(attempts);
    (script.clone(), Connection::new(script))
}

async fn answered(connection: &Arc<Connection<Arc<Script>>>) -> Result<usize, Trouble> {
    connection.run(&mut Doubt::default(), |live| async move { Ok(*live) }).await
}

async fn unanswered(connection: &Arc<Connection<Arc<Script>>>) -> Result<usize, Trouble> {
    connection.run(&mut Doubt::default(), |_| std::future::pending()).await
}

#[tokio::test(start_paused = true)]
async fn a_refusal_before_anything_was_sent_is_certain() {
    let (_, connection) = connection(&[Err(Trouble::Refused(Fate::Sent))]);
    assert_eq!(answered(&connection).await, Err(Trouble::Refused(Fate::Unsent)));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_a_lost_answer_leaves_the_step_in_doubt() {
    let refusal = Trouble::Refused(Fate::Sent);
    let (_, connection) = connection(&[Ok(()), Err(refusal)]);
    let mut doubt = Doubt::default();
    let lost =
        connection.run(&mut doubt, |_| async { Err::<(), _>(Trouble::Dropped(Fate::Sent)) }).await;
    assert_eq!(lost, Err(Trouble::Refused(Fate::InDoubt)));
    assert!(doubt.exists());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_step_has_the_connection_replaced_if_it_stays_silent() {
    let (script, connection) = connection(&[]);
    assert_eq!(answered(&connection).await, Ok(0));
    let _ = timeout(LIMIT / 3, unanswered(&connection)).await;
    advance(LIMIT / 3).await;
    assert_eq!(answered(&connection).await, Ok(0));
    tokio::time::sleep(LIMIT).await;
    assert_eq!(answered(&connection).await, Ok(1));
    assert_eq!(script.connects.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_step_costs_no_connection_that_still_answers() {
    let (script, connection) = connection(&[]);
    let _ = timeout(LIMIT / 3, unanswered(&connection)).await;
    script.answers.notify_one();
    tokio::time::sleep(2 * LIMIT).await;
    assert_eq!(answered(&connection).await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn suspect_connections_count_until_they_have_answered() {
    let (script, connection) = connection(&[]);
    for _ in 0..2 {
        assert_eq!(unanswered(&connection).await, Err(Trouble::TimedOut(Fate::InDoubt)));
        tokio::time::sleep(RECONNECT_PAUSE_MAX).await;
    }
    assert_eq!(answered(&connection).await, Err(Trouble::Crowded(Fate::Unsent)));
    assert_eq!(script.connects.load(Ordering::Relaxed), 2);
    script.answers.notify_one();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(answered(&connection).await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn a_suspect_connection_that_never_answers_is_given_up_in_the_end() {
    let (_, connection) = connection(&[]);
    for _ in 0..2 {
        let _ = unanswered(&connection).await;
        tokio::time::sleep(RECONNECT_PAUSE_MAX).await;
    }
    tokio::time::sleep(SUSPECT_AGE_MAX).await;
    assert_eq!(answered(&connection).await, Ok(2));
}

#[test]
fn only_what_was_never_sent_or_never_lost_is_refused_for_certain() {
    let unavailable = ErrorKind::Unavailable;
    for certain in [ErrorKind::Refused, ErrorKind::Full] {
        assert_eq!(Fate::Unsent.judge(certain), certain);
        assert_eq!(Fate::Sent.judge(certain), certain);
        assert_eq!(Fate::InDoubt.judge(certain), unavailable);
    }
    assert_eq!(Fate::Unsent.judge(unavailable), ErrorKind::Refused);
    assert_eq!(Fate::Sent.judge(unavailable), unavailable);
    assert_eq!(Fate::InDoubt.judge(unavailable), unavailable);
    assert_eq!(Fate::Unsent.judge(ErrorKind::Internal), ErrorKind::Internal);
}

#[test]
fn pauses_grow_to_a_limit_and_are_never_shorter_than_half() {
    for strikes in 0..40 {
        let whole = RECONNECT_PAUSE.saturating_mul(1 << strikes.min(10)).min(RECONNECT_PAUSE_MAX);
        let pause = backoff(strikes);
        assert!(pause >= whole / 2 && pause <= whole, "{strikes}: {pause:?}");
    }
}

const LIMIT: Duration = Duration::from_secs(1);

//! The store that keeps its records in PostgreSQL.
//!
//! # What it promises
//!
//! What PostgreSQL promises for commits: an acknowledged claim or result survives a crash of the
//! server and of its host, and a failover to a synchronous standby.
//! A failover to an asynchronous one can forget the last of them, and then their operations run
//! twice.
//! [`PostgresStore::check`] says which of these a server's configuration amounts to, and what about
//! it is dangerous.
//!
//! # Tables and grants
//!
//! The first session makes what is missing, under an advisory lock, and notes the version; that
//! takes `CREATE` on the database, or on the schema if there is one already.
//! With [`migrate(false)`](PostgresStoreBuilder::migrate) the store only verifies the version, and
//! an administrator runs [the SQL](PostgresStore::schema_sql).
//! At run time a role needs no more than this:
//!
//! ```sql
//! GRANT USAGE ON SCHEMA idemptx TO app;
//! GRANT SELECT, INSERT, UPDATE, DELETE ON idemptx.records TO app;
//! GRANT SELECT ON idemptx.records_version TO app;
//! ```
//!
//! Where `EXECUTE` on `pg_notify` was taken from `PUBLIC`, grant that, too: without it nothing is
//! lost, but waiters look again from time to time instead of being woken.
//!
//! # Sessions
//!
//! A runtime opens up to [four sessions](PostgresStoreBuilder::sessions), shared by all steps, and
//! one that listens; an engine has two runtimes, the application's and the one that renews leases,
//! so a process takes ten connections at most and three in quiet times, and one more for each
//! [transaction](PostgresStoreBuilder::transactions) that handlers have open at a time.
//! A session on which an answer is late gets no further statement and is replaced, but it counts:
//! as long as the server has not answered, for example because commits wait for a standby that is
//! away, a runtime has at most twice as many sessions.
//! A URL with several hosts leads to the one that takes writes, and to another as soon as that one
//! refuses them: the step that was refused goes on there.
//! A server that was replaced by its standby, and takes writes all the same, is left alone by every
//! process that has seen the standby since.
//! A session begins with `lock_timeout`, `statement_timeout`,
//! `idle_in_transaction_session_timeout`, the isolation level READ COMMITTED,
//! [`synchronous_commit`](PostgresStoreBuilder::synchronous_commit), and settings that have every
//! statement planned once and executed by index; what `options` in the URL set is left as it is.
//! Tables that are missing on a server that is connected to later, such as a standby that was
//! promoted before it had them, are made like those of the first one.
//!
//! # Through a pooler
//!
//! A pooler that hands out sessions works as it is.
//! Through one in transaction mode, such as pgbouncer's, call
//! [`pooled(true)`](PostgresStoreBuilder::pooled), and do without:
//!
//! - prepared statements: each is parsed and planned every time;
//! - `LISTEN`: waiters look again from time to time, as they do with stores that cannot
//!   [watch](idemptx_core::store::Store::watch); listeners elsewhere are still notified;
//! - settings of a session: give them to the role, such as
//!   `ALTER ROLE app SET lock_timeout = '500ms'` and
//!   `ALTER ROLE app SET statement_timeout = '2s'`; its isolation level must be READ COMMITTED;
//! - undoing what handlers change of a session (`SET`, advisory locks): the next user of that
//!   session inherits it; `SET LOCAL` and `pg_advisory_xact_lock` end with the transaction;
//! - types that are not built in, in handlers' transactions: the client library prepares what it
//!   asks about them once for a session;
//! - plans that are settled on: two batches may lock their rows in different orders, whereupon
//!   PostgreSQL ends one after `deadlock_timeout` and its steps are taken one by one.
//!
//! # Why the statements are right
//!
//! Each is a separate transaction at READ COMMITTED, of one of two kinds.
//!
//! *Those that change a record* name the token and the state that they expect, in the `WHERE` of an
//! `UPDATE` or a `DELETE`.
//! PostgreSQL locks the row and evaluates the condition on its latest version, so of any number of
//! them one at a time sees the state that it changes, independent of their snapshots.
//! No row is the verdict that the record is another one; which one is asked for by a second
//! statement, after it: a token is never used twice, so what that finds is true of a moment within
//! the step.
//! If it finds that the record could be changed after all, others came in between, and the step
//! starts again.
//!
//! *The claim of a new key* inserts, and reads what is there if it cannot.
//! The primary key admits one row: a claim that meets another's waits until that has committed, and
//! then neither inserts nor reads it, for its snapshot is older; it asks again.
//! A claim that finds something writes nothing, so that a replay costs no flush to disk.
//! What has expired counts as nothing, and is replaced by a statement of the first kind.
//!
//! Leases and retentions are judged by `clock_timestamp()`, read once a statement, before any wait
//! for a lock: a lease may look a little younger than it is, never older, and one that is granted
//! counts from a moment after the claim was sent.
//! A fence is that clock in microseconds, or one more than the fence it replaces.
//!
//! Claims that wait at the same time go in one statement, and so do settlements: a step that finds
//! a session free goes at once, alone.
//! A batch locks its rows in the order of their ids, so two batches never wait for each other; if
//! it fails for a reason that may lie in one row, its steps are taken one by one.
//!
//! The end of a claim is sent by `NOTIFY` only if a waiter has marked the record, since commits
//! that notify stand in one line; and in a statement of its own, after the one that ends the claim:
//! a commit that notifies fails if the role may not, or if the server's queue is full.

mod batcher;
mod database_settings;
mod external_driver;
mod in_transaction;
mod invalid_setting;
mod list_rows;
mod migration;
mod notification;
mod postgres_failure;
mod postgres_store;
mod row;
mod runtime_pool;
mod servers;
mod session;
mod settings;
mod statement;
mod store_builder;
mod sweep;
mod table_names;
mod transaction;

pub use self::external_driver::{ParameterStyle, SettleParameter, SettleStatement};
pub use self::invalid_setting::InvalidSetting;
pub use self::postgres_store::PostgresStore;
pub use self::settings::SynchronousCommit;
pub use self::store_builder::PostgresStoreBuilder;
pub(super) use self::store_builder::STEP_LIMIT;
pub use self::transaction::{OpenTransaction, PostgresTransaction};

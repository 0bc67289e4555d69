//! The steps of operations that are forgotten.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use idemptx::operator::Query;
use idemptx::store::AnyStore;
use idemptx::{Engine, Execution};

use super::environment::{Environment, id};

pub(crate) async fn the_steps_of_a_forgotten_operation_go_with_it(place: &Environment) {
    let (shop, operator) = (Shop::open(place), place.operator());
    assert_eq!([shop.pay("k").await, shop.pay("other").await], [1, 2]);
    operator.forget(&id(&operator, "k")).await.unwrap();
    assert_eq!(operator.list(&Query::all()).await.unwrap().entries.len(), 2, "those of `other`");
    assert_eq!([shop.pay("k").await, shop.pay("k").await], [3, 3], "charged again, and once");
    assert_eq!(shop.pay("other").await, 2);
}

pub(crate) async fn a_purge_takes_the_steps_along(place: &Environment) {
    let (shop, operator) = (Shop::open(place), place.operator());
    assert_eq!([shop.pay("k").await, shop.pay("other").await], [1, 2]);
    let one = Query::all().only(id(&operator, "k"));
    let report = operator.purge(one.clone()).dry_run().run().await.unwrap();
    assert_eq!(report.forgotten, 1);
    assert_eq!(operator.list(&Query::all()).await.unwrap().entries.len(), 4);
    assert_eq!(operator.purge(one).run().await.unwrap().forgotten, 1);
    assert_eq!(operator.list(&Query::all()).await.unwrap().entries.len(), 2);
    assert_eq!([shop.pay("k").await, shop.pay("other").await], [3, 2]);
}

/// Charges in a step, and counts.
struct Shop {
    engine: Engine<AnyStore>,
    charges: Arc<AtomicU32>,
}

impl Shop {
    fn open(place: &Environment) -> Self {
        let engine = place.process(|policy| policy).engine;
        Self { engine, charges: Arc::default() }
    }

    /// Returns the number of the charge of the operation.
    async fn pay(&self, key: &str) -> u32 {
        let charges = Arc::clone(&self.charges);
        let work = async move |execution: Execution| {
            let charge =
                async || Ok::<_, std::io::Error>(charges.fetch_add(1, Ordering::SeqCst) + 1);
            execution.step("charge", charge).await
        };
        self.engine.run(key, b"100 EUR", work).await.unwrap()
    }
}

//! Numbers measured in turns.

use crate::Measured;

/// The measurements of one variant, one value a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value that `share` of all values do not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }

    /// The ratios to another series of the same rounds.
    pub(crate) fn relative_to(&self, baseline: &Self) -> Self {
        self.0.iter().zip(&baseline.0).map(|(value, base)| value / base).collect()
    }

    /// The differences from another series of the same rounds.
    pub(crate) fn minus(&self, baseline: &Self) -> Self {
        self.0.iter().zip(&baseline.0).map(|(value, base)| value - base).collect()
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

/// Measures every variant once a round, so that what changes with time changes for all of them.
pub(crate) fn in_turns<V, const N: usize>(
    rounds: usize,
    variants: &[V],
    mut measure: impl FnMut(&V) -> Measured<[f64; N]>,
) -> Measured<Vec<[Series; N]>> {
    let mut series: Vec<[Series; N]> =
        variants.iter().map(|_| std::array::from_fn(|_| Series::default())).collect();
    for _ in 0..rounds {
        for (variant, series) in variants.iter().zip(&mut series) {
            for (series, value) in series.iter_mut().zip(measure(variant)?) {
                series.push(value);
            }
        }
    }
    Ok(series)
}

//! The numbers of one answer to Prometheus.

use prometheus::{Encoder as _, GaugeVec, IntCounterVec, Opts, Registry, TextEncoder};

/// Numbers, each with a value for each combination of labels. Errors are names or labels that Prometheus does not take.
#[derive(Debug)]
pub struct Numbers {
    prefix: &'static str,
    registry: Registry,
}

impl Numbers {
    /// None yet; all names begin with `prefix`.
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, registry: Registry::new() }
    }

    /// A number that rises and falls.
    pub fn gauge<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; N],
        values: impl IntoIterator<Item = ([String; N], f64)>,
    ) -> prometheus::Result<()> {
        let gauge = GaugeVec::new(self.options(name, help), &labels)?;
        for (values, value) in values {
            gauge.with_label_values(&values).set(value);
        }
        self.registry.register(Box::new(gauge))
    }

    /// A number that only rises.
    pub fn counter<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; N],
        values: impl IntoIterator<Item = ([String; N], u64)>,
    ) -> prometheus::Result<()> {
        let counter = IntCounterVec::new(self.options(name, help), &labels)?;
        for (values, value) in values {
            counter.with_label_values(&values).inc_by(value);
        }
        self.registry.register(Box::new(counter))
    }

    /// As it is sent.
    pub fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    fn options(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("{}_{name}", self.prefix), help)
    }
}

/// A count.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub fn number(count: usize) -> f64 {
    count as f64
}

/// 1 or 0.
pub fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

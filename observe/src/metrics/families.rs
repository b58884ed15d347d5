//! Metrics by name, as they are put together for one answer.

use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType, Summary};
use std::time::Duration;

/// What kind of figure a metric is, by Prometheus' terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the process's start. Its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// The metrics of one answer. Those of one name stand together, whoever added them.
#[derive(Debug, Default)]
pub struct Families(Vec<MetricFamily>);

impl Families {
    /// Adds a whole number. `help` is the same wherever the name is used.
    pub fn add(&mut self, kind: Kind, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        // Prometheus knows doubles only: exact up to 2^53.
        self.add_real(kind, name, help, labels, value as f64);
    }

    /// Adds a number, such as one of seconds.
    pub fn add_real(
        &mut self,
        kind: Kind,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        let metric = match kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                let mut metric = Metric::default();
                metric.set_counter(counter);
                metric
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                Metric::from_gauge(gauge)
            }
        };
        let kind = match kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
        };
        self.put(kind, name, help, labels, metric);
    }

    /// Adds how often something was done and how long all of that took: a summary without quantiles.
    pub fn add_times(
        &mut self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        count: u64,
        all: Duration,
    ) {
        let mut summary = Summary::default();
        summary.set_sample_count(count);
        summary.set_sample_sum(all.as_secs_f64());
        let mut metric = Metric::default();
        metric.set_summary(summary);
        self.put(MetricType::SUMMARY, name, help, labels, metric);
    }

    fn put(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        mut metric: Metric,
    ) {
        let pair = |(name, value): &(&str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        metric.set_label(labels.iter().map(pair).collect());
        if let Some(family) = self.0.iter_mut().find(|family| family.name() == name) {
            family.mut_metric().push(metric);
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(vec![metric]);
        self.0.push(family);
    }

    /// The text.
    ///
    /// # Errors
    /// What the encoder says of a metric that Prometheus would not take.
    pub fn encode(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.0)
    }
}

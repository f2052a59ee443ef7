mod http;
mod parent;

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use model::{CallEnd, CallId, FunctionName, Outcome, Phases};
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, IdGenerator, RandomIdGenerator, SpanData,
        SpanEvents, SpanLinks, SpanProcessor,
    },
};

use http::PlainHttp;
use parent::Parent;

/// Spans that wait to be sent; those beyond are left out.
const QUEUE: usize = 8192;
/// Spans in one request, about 200 KiB.
const BATCH: usize = 512;
/// How long a collector may take for one of them.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which collector spans are sent to, by the variables of OpenTelemetry's specification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collector {
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: a base URL, to which `/v1/traces` is added.
    pub endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`: a whole URL; goes before the other.
    pub traces_endpoint: Option<String>,
    /// `OTEL_SERVICE_NAME`; `hearth` if there is none.
    pub service_name: Option<String>,
}

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// Not the URL of a collector that can be spoken to.
    #[error("`{url}` is not a URL of the form http://host:port/path")]
    Url {
        /// What was given.
        url: String,
    },
    /// OpenTelemetry's exporter does not start.
    #[error("the exporter of spans does not start: {0}")]
    Exporter(String),
}

impl Collector {
    fn url(&self) -> Option<String> {
        let given = |url: &Option<String>| url.clone().filter(|url| !url.is_empty());
        let base = |url: String| format!("{}/v1/traces", url.trim_end_matches('/'));
        given(&self.traces_endpoint).or_else(|| given(&self.endpoint).map(base))
    }
}

/// A call that is over.
#[derive(Clone, Copy, Debug)]
pub struct CallSpan<'a> {
    /// The function that was called.
    pub function: &'a FunctionName,
    /// The call's id.
    pub call: CallId,
    /// The header `traceparent` of the request.
    pub traceparent: Option<&'a str>,
    /// When the call came.
    pub started: SystemTime,
    /// How long it took, until the reply's end.
    pub took: Duration,
    /// How it went.
    pub end: &'a CallEnd,
}

/// Sends a span for each call to a collector, if there is one.
pub struct Spans(Option<Exporter>);

struct Exporter {
    processor: BatchSpanProcessor,
    ids: RandomIdGenerator,
    scope: InstrumentationScope,
}

impl Spans {
    /// Spans that go nowhere.
    pub fn off() -> Self {
        Self(None)
    }

    /// Gets ready to send spans; off if no endpoint is given. Whether the collector is there shows
    /// when the first ones are sent, and is then logged.
    pub fn start(collector: &Collector, version: &'static str) -> Result<Self, CollectorError> {
        let Some(url) = collector.url() else { return Ok(Self::off()) };
        let Some(client) = PlainHttp::to(&url, PATIENCE) else {
            return Err(CollectorError::Url { url });
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .with_timeout(PATIENCE)
            .build()
            .map_err(|error| CollectorError::Exporter(error.to_string()))?;
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(Duration::from_secs(1));
        let mut processor =
            BatchSpanProcessor::builder(exporter).with_batch_config(config.build()).build();
        let service = collector.service_name.clone().unwrap_or_else(|| "hearth".into());
        let version_attribute = KeyValue::new("service.version", version);
        let resource = Resource::builder_empty()
            .with_attributes([KeyValue::new("service.name", service), version_attribute]);
        processor.set_resource(&resource.build());
        let scope = InstrumentationScope::builder("hearth").with_version(version).build();
        Ok(Self(Some(Exporter { processor, ids: RandomIdGenerator::default(), scope })))
    }

    /// Whether spans go anywhere.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Queues the spans of a call; leaves them out if too many wait, or if the caller's trace is
    /// not sampled. Never waits.
    pub fn record(&self, call: &CallSpan<'_>) {
        if let Some(exporter) = &self.0 {
            exporter.record(call);
        }
    }

    /// Sends what waits, for at most so long, and ends. Blocks; later spans go nowhere.
    pub fn shutdown(&self, patience: Duration) {
        if let Some(exporter) = &self.0
            && let Err(error) = exporter.processor.shutdown_with_timeout(patience)
        {
            tracing::warn!(%error, "the last spans may be lost");
        }
    }
}

impl Exporter {
    fn record(&self, call: &CallSpan<'_>) {
        let parent = call.traceparent.and_then(Parent::read);
        if parent.as_ref().is_some_and(|parent| !parent.is_sampled) {
            return;
        }
        let trace = parent.map_or(TraceId::from_bytes(call.call.0.into_bytes()), |it| it.trace);
        let (span, above) = (self.ids.new_span_id(), parent.map(|parent| parent.span));
        self.processor.on_end(SpanData {
            parent_span_id: above.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: above.is_some(),
            span_kind: SpanKind::Server,
            attributes: attributes(call),
            status: status(call.end),
            ..self.span(
                trace,
                span,
                call.function.as_str().to_owned().into(),
                call.started,
                call.took,
            )
        });
        let mut start = call.started;
        for (name, micros) in Phases::NAMES.into_iter().zip(call.end.phases) {
            if micros == 0 {
                continue;
            }
            let took = Duration::from_micros(micros);
            let child = self.span(trace, self.ids.new_span_id(), name.into(), start, took);
            self.processor.on_end(SpanData { parent_span_id: span, ..child });
            start += took;
        }
    }

    fn span(
        &self,
        trace: TraceId,
        id: SpanId,
        name: Cow<'static, str>,
        start_time: SystemTime,
        took: Duration,
    ) -> SpanData {
        let flags = TraceFlags::SAMPLED;
        SpanData {
            span_context: SpanContext::new(trace, id, flags, false, TraceState::NONE),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name,
            start_time,
            end_time: start_time + took,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// Named as in OpenTelemetry's semantic conventions, as far as these have names.
fn attributes(call: &CallSpan<'_>) -> Vec<KeyValue> {
    let CallEnd { method, path, outcome, status, instance, error: _, phases } = call.end;
    let [_, _, spare, attach, bind, _, _] = *phases;
    let mut attributes = vec![
        KeyValue::new("faas.name", call.function.as_str().to_owned()),
        KeyValue::new("faas.invocation_id", call.call.to_string()),
        KeyValue::new("faas.coldstart", spare + attach + bind > 0),
        KeyValue::new("http.request.method", method.clone()),
        KeyValue::new("url.path", path.clone()),
        KeyValue::new("hearth.outcome", outcome.as_str()),
    ];
    attributes
        .extend(status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
    attributes.extend(instance.clone().map(|instance| KeyValue::new("faas.instance", instance)));
    attributes
}

fn status(end: &CallEnd) -> Status {
    let is_error = match end.outcome {
        Outcome::Served => end.status.is_some_and(|status| status >= 500),
        // The client's choice.
        Outcome::Cancelled => false,
        Outcome::Failed
        | Outcome::TimedOut
        | Outcome::NotLoaded
        | Outcome::Lost
        | Outcome::Refused => true,
    };
    if is_error { Status::error(end.error.clone().unwrap_or_default()) } else { Status::Unset }
}

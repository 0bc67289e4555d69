//! Header fields of one message, hop or trace, which say nothing about an operation or its result.
//!
//! Names are in lower case.

/// Returns true for a field of the connection or of the framing (RFC 9110 §7.6.1 and §8.6).
pub(crate) fn is_of_connection(name: &str) -> bool {
    let singles = matches!(
        name,
        "connection"
            | "content-length"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    );
    singles || name.starts_with("proxy-")
}

/// Returns true for the id of one request or trace, which many proxies and clients draw for each
/// try.
pub(crate) fn is_of_trace(name: &str) -> bool {
    let singles = matches!(
        name,
        "b3" | "cf-ray"
            | "correlation-id"
            | "fly-request-id"
            | "request-id"
            | "traceparent"
            | "tracestate"
            | "x-amz-cf-id"
            | "x-amz-request-id"
            | "x-amzn-requestid"
            | "x-amzn-trace-id"
            | "x-cloud-trace-context"
            | "x-correlation-id"
            | "x-ms-request-id"
            | "x-request-id"
            | "x-trace-id"
            | "x-vercel-id"
    );
    singles || name.starts_with("x-b3-")
}

/// Returns true for a field to which a client or a proxy gives another value in each try.
///
/// Fields by which a proxy says what the client asked for, such as `X-Forwarded-Host`, are none of
/// them: they are the same in each try, and another request has others.
pub(crate) fn is_of_attempt(name: &str) -> bool {
    let singles = matches!(
        name,
        // The moment and the hops.
        "cdn-loop" | "date" | "early-data" | "expect" | "forwarded" | "http2-settings"
            | "max-forwards" | "priority" | "via" | "x-forwarded-for" | "x-request-start"
            // The client's address, which may change between two tries.
            | "cf-connecting-ip" | "fastly-client-ip" | "fly-client-ip" | "true-client-ip"
            | "x-client-ip" | "x-cluster-client-ip" | "x-real-ip"
            // Traces that are never in a response.
            | "baggage" | "elastic-apm-traceparent" | "grpc-trace-bin" | "newrelic"
            | "sentry-trace" | "sw8" | "uber-trace-id" | "x-client-trace-id"
            | "x-ot-span-context"
            // The number of the try, as clients count it.
            | "amz-sdk-invocation-id" | "amz-sdk-request" | "x-goog-api-client" | "x-retry-count"
            | "x-stainless-retry-count" | "x-stripe-client-telemetry"
            // The key: quoted or bare, it is the same; and what the gateway says of an execution.
            | "idempotency-key" | "idempotency-attempt" | "idempotency-derived"
            | "idempotency-fence"
    );
    let families = ["sw8-", "x-datadog-", "x-envoy-"];
    singles
        || families.iter().any(|family| name.starts_with(family))
        || is_of_connection(name)
        || is_of_trace(name)
}

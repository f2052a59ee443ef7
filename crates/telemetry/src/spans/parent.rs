use opentelemetry::trace::{SpanId, TraceId};

/// Who called, by the header `traceparent` (W3C Trace Context, 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) trace: TraceId,
    pub(crate) span: SpanId,
    pub(crate) is_sampled: bool,
}

impl Parent {
    /// Reads the header; none if it is not one that may be used.
    pub(crate) fn read(header: &str) -> Option<Self> {
        let mut parts = header.trim_ascii().split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_right = |part: &str, length| {
            part.len() == length
                && part.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        };
        let are_right = is_right(version, 2)
            && is_right(trace, 32)
            && is_right(span, 16)
            && is_right(flags, 2)
            && version != "ff"
            // Later versions may have more parts.
            && (version != "00" || parts.next().is_none());
        if !are_right {
            return None;
        }
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        let is_valid = trace != TraceId::INVALID && span != SpanId::INVALID;
        is_valid.then_some(Self { trace, span, is_sampled })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_header_names_a_parent() {
        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
        const SPAN: &str = "b7ad6b7169203331";
        let zeros = "0".repeat(32);
        for (header, expected) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!(" 00-{TRACE}-{SPAN}-03 "), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-what-the-future-brings"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-01-more"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{zeros}-{SPAN}-01"), None),
            (format!("00-{TRACE}-{}-01", &zeros[..16]), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{TRACE}-{SPAN}"), None),
            (format!("00-{SPAN}-{TRACE}-01"), None),
            ("ä".repeat(55), None),
            (String::new(), None),
        ] {
            let found = Parent::read(&header);
            assert_eq!(found.map(|parent| parent.is_sampled), expected, "{header:?}");
            let trace = found.map(|parent| parent.trace.to_string());
            assert!(trace.is_none_or(|trace| trace == TRACE), "{header:?}");
        }
    }
}

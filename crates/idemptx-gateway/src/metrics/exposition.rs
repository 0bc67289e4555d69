//! The text format of Prometheus 0.0.4, for readers that do not ask for OpenMetrics.

/// Turns OpenMetrics text into the older format, in which a counter's name ends with `_total`, an
/// info is a gauge, and there are neither units nor an end.
pub(super) fn plain(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|it| it.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            if let Some((_, help)) = help.take() {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_of_the_older_format_finds_each_type_with_its_samples() {
        let openmetrics = "# HELP a_b The count.\n# TYPE a_b counter\na_b_total{c=\"d\"} 1\n\
                           # HELP t Time.\n# TYPE t histogram\n# UNIT t seconds\nt_sum 0.5\n\
                           # HELP v Version.\n# TYPE v info\nv_info{version=\"1\"} 1\n# EOF\n";
        let expected = "# HELP a_b_total The count.\n# TYPE a_b_total counter\n\
                        a_b_total{c=\"d\"} 1\n# HELP t Time.\n# TYPE t histogram\nt_sum 0.5\n\
                        # HELP v_info Version.\n# TYPE v_info gauge\nv_info{version=\"1\"} 1\n";
        assert_eq!(plain(openmetrics), expected);
    }
}

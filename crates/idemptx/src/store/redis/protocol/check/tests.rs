use super::*;

impl ServerSettings {
    fn report(&self, server: Option<&str>) -> SafetyReport {
        self.report_with(server, Precautions::default())
    }

    fn report_with(&self, server: Option<&str>, precautions: Precautions) -> SafetyReport {
        judge(server, Deployment::Single, precautions, std::slice::from_ref(self))
    }
}

fn settings(info_lines: &str, configuration: &[(&str, &str)]) -> ServerSettings {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    ServerSettings {
        info: Some(info(Reply::Bytes(info_lines.replace('\n', "\r\n").into()))),
        configuration: Some(configuration.iter().map(own).collect()),
    }
}

const GOOD: &str = "# Server\nredis_version:7.0.15\nrole:master\ncluster_enabled:0\n\
     maxmemory_policy:noeviction\nmaxmemory:0\nused_memory:1000\naof_enabled:1\nconnected_slaves:0";

fn gravest(settings: &ServerSettings) -> Option<Severity> {
    settings.report(Some("host:6379/0")).findings.first().map(|finding| finding.severity)
}

#[test]
fn a_lone_server_that_writes_everything_is_found_faultless() {
    let settings = settings(GOOD, &[("appendfsync", "always"), ("save", "")]);
    let report = settings.report(Some("host:6379/0"));
    assert_eq!(report.findings, []);
    assert_eq!(
        report.guarantee,
        "redis 7.0.15 at host:6379/0: claims survive a crash of Redis and of its host \
         (appendonly always); no replicas; no eviction"
    );
    assert_eq!(settings.persistence().is_durable(), Some(true));
}

#[test]
fn a_second_that_may_be_lost_is_noted_and_not_called_unsafe() {
    let report = settings(GOOD, &[("appendfsync", "everysec")]).report(Some("host:6379/0"));
    assert_eq!(report.findings[0].severity, Severity::Note);
    assert!(!report.is_unsafe());
    assert!(report.guarantee.contains("up to the last second (appendonly everysec)"));
}

#[test]
fn what_can_lose_or_delete_claims_is_unsafe() {
    for (good, bad) in [
        ("maxmemory_policy:noeviction", "maxmemory_policy:volatile-lru"),
        ("connected_slaves:0", "connected_slaves:2"),
        ("aof_enabled:1", "aof_enabled:0"),
    ] {
        let settings =
            settings(&GOOD.replace(good, bad), &[("appendfsync", "always"), ("save", "")]);
        assert_eq!(gravest(&settings), Some(Severity::Unsafe), "{bad}");
        assert!(!settings.report(Some("host")).is_fatal(), "{bad}");
    }
}

#[test]
fn snapshots_alone_are_durable_and_still_unsafe() {
    let settings = settings(&GOOD.replace("aof_enabled:1", "aof_enabled:0"), &[("save", "3600 1")]);
    assert_eq!(settings.persistence().is_durable(), Some(true));
    assert_eq!(gravest(&settings), Some(Severity::Unsafe));
}

#[test]
fn what_cannot_work_is_fatal() {
    for (good, bad) in [
        ("redis_version:7.0.15", "redis_version:6.2.14"),
        ("role:master", "role:slave"),
        ("cluster_enabled:0", "cluster_enabled:1"),
    ] {
        let settings = settings(&GOOD.replace(good, bad), &[("appendfsync", "always")]);
        assert_eq!(gravest(&settings), Some(Severity::Fatal), "{bad}");
    }
}

#[test]
fn valkey_is_called_by_its_own_name_and_version() {
    let lines =
        format!("{GOOD}\nserver_name:valkey\nvalkey_version:8.1.3").replace("7.0.15", "7.2.4");
    let report = settings(&lines, &[("appendfsync", "always")]).report(Some("host:6379/0"));
    assert!(report.guarantee.starts_with("valkey 8.1.3 at host"), "{}", report.guarantee);
    assert_eq!(report.findings, []);
}

#[test]
fn little_headroom_is_a_warning() {
    let lines = GOOD.replace("maxmemory:0", "maxmemory:1100");
    assert_eq!(gravest(&settings(&lines, &[("appendfsync", "always")])), Some(Severity::Warning));
}

#[test]
fn what_the_server_will_not_tell_is_a_warning_and_not_a_guess() {
    let silent = ServerSettings { info: None, configuration: None };
    let report = silent.report(Some("host:6379/0"));
    assert!(!report.is_unsafe());
    assert_eq!(report.findings[0].severity, Severity::Warning);
    assert_eq!(
        report.guarantee,
        "redis of an unknown version at host:6379/0: what survives a crash of Redis is unknown; \
         replicas unknown; eviction unknown"
    );
    assert_eq!(silent.persistence().is_durable(), None);
}

fn refusal(error: &'static str) -> Reply {
    Reply::Error(error.into())
}

#[test]
fn a_server_that_refuses_a_question_is_no_failure_and_one_that_cannot_answer_is() {
    let layout = Layout::new("idem:").at("host:6379/0");
    let silent = [refusal("NOPERM no permissions"), refusal("ERR unknown command 'CONFIG'")];
    let checked = evaluate(&layout, Transport::Private, silent).unwrap();
    assert_eq!(checked.durable, None);
    assert_eq!(checked.report.findings[0].severity, Severity::Warning);
    let loading = [refusal("LOADING"), Reply::Nil];
    assert!(evaluate(&layout, Transport::Private, loading).is_err());
}

#[test]
fn plain_text_through_a_network_is_unsafe() {
    let layout = Layout::new("idem:");
    let good = || [Reply::Bytes(GOOD.into()), Reply::Array(Vec::new())];
    let private = evaluate(&layout, Transport::Private, good()).unwrap();
    assert!(!private.report.is_unsafe());
    let plaintext = evaluate(&layout, Transport::Plaintext, good()).unwrap();
    assert!(plaintext.report.findings[0].text.contains("rediss://"));
    assert!(plaintext.report.is_unsafe());
    assert!(plaintext.report.guarantee.starts_with("redis 7.0.15: "));
}

#[test]
fn the_questions_are_two_commands() {
    let texts = questions().map(|question| question.arguments().collect::<Vec<_>>().join(&b' '));
    assert_eq!(texts, [&b"INFO"[..], b"CONFIG GET appendfsync save"]);
}

#[test]
fn precautions_against_a_failover_count_as_far_as_they_go() {
    let lines = GOOD.replace("connected_slaves:0", "connected_slaves:2");
    let replicated = settings(&lines, &[("appendfsync", "always")]);
    for (wait_replicas, has_grace, is_unsafe, text) in [
        (0.into(), false, true, "one of 2 replicas may forget acknowledged claims; no eviction"),
        (1.into(), true, true, "may forget acknowledged claims, and those who live put them back"),
        (2.into(), false, true, "any of 2 connected replicas keeps acknowledged claims"),
        (2.into(), true, false, "any of 2 connected replicas keeps acknowledged claims"),
        (WaitReplicas::All, true, false, "any of 2 connected replicas keeps"),
    ] {
        let precautions = Precautions { wait_replicas, has_grace, ..Precautions::default() };
        let report = replicated.report_with(Some("host"), precautions);
        assert_eq!(report.is_unsafe(), is_unsafe, "{report:?}");
        assert!(report.guarantee.contains(text), "{}", report.guarantee);
    }
}

#[test]
fn what_is_waited_for_on_the_disk_survives_whenever_that_is_flushed() {
    let waiting = Precautions { waits_for_disk: true, ..Precautions::default() };
    for (appendfsync, severity, word) in
        [("always", None, "of its host"), ("everysec", Some(Severity::Warning), "waited for")]
    {
        let server = settings(GOOD, &[("appendfsync", appendfsync)]);
        let report = server.report_with(Some("host"), waiting);
        assert_eq!(report.findings.first().map(|it| it.severity), severity, "{report:?}");
        assert!(report.guarantee.contains(word), "{}", report.guarantee);
    }
    let alone = settings(GOOD, &[("appendfsync", "always")]);
    let all = Precautions { wait_replicas: WaitReplicas::All, ..Precautions::default() };
    let report = alone.report_with(Some("host"), all);
    assert!(report.guarantee.contains("nothing counts before 1 have it"), "{report:?}");
}

//! The manifests under `deploy/kubernetes`, held to the gateway and to each other; `make check`
//! validates them against the schemas of Kubernetes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use idemptx_gateway::config::Config;
use serde_json::Value;

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kubernetes").join(file)
}

fn manifest(file: &str) -> Value {
    serde_saphyr::from_str(&fs::read_to_string(path(file)).unwrap()).unwrap()
}

#[test]
fn the_manifests_fit_the_gateway_and_each_other() {
    let kustomization = manifest("kustomization.yaml");
    let resources = kustomization["resources"].as_array().unwrap();
    assert!(resources.iter().all(|it| path(it.as_str().unwrap()).exists()), "{resources:?}");
    let listed =
        fs::read_dir(path("")).unwrap().filter_map(|it| it.unwrap().file_name().into_string().ok());
    let manifests = listed.filter(|it| it.ends_with(".yaml") && it != "kustomization.yaml");
    assert_eq!(manifests.count(), resources.len(), "every manifest is listed");

    let deployment = manifest("deployment.yaml");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let variables: Vec<_> = container["env"].as_array().unwrap().iter().collect();
    let given = |name: &str| {
        let is_given = variables.iter().any(|it| it["name"] == name);
        is_given.then(|| "memory:".to_owned())
    };
    let text = fs::read_to_string(path("idemptx.toml")).unwrap();
    let config = Config::parse("idemptx.toml", &text, given).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);

    // The probes reach a listener that answers them, by the name of its port.
    let listener = &config.listeners[0];
    assert!(listener.probes);
    let port = |name: &str| {
        let ports = container["ports"].as_array().unwrap();
        ports.iter().find(|it| it["name"] == name).unwrap()["containerPort"].clone()
    };
    assert_eq!(port("http"), listener.address.tcp().unwrap().port());
    assert_eq!(port("admin"), config.admin.as_ref().unwrap().address.tcp().unwrap().port());
    for (probe, path) in
        [("livenessProbe", "/healthz"), ("startupProbe", "/healthz"), ("readinessProbe", "/readyz")]
    {
        let asked = &container[probe]["httpGet"];
        assert_eq!((&asked["path"], &asked["port"]), (&path.into(), &"http".into()), "{probe}");
    }
    assert_eq!(manifest("service.yaml")["spec"]["ports"][0]["targetPort"], "http");

    // A pod has the time that the gateway takes to end.
    let drain_max = config.routes.iter().filter_map(|it| it.policy()).map(|it| it.drain).max();
    let needed = config.limits.lame_duck + drain_max.unwrap();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(Duration::from_secs(grace) > needed, "{grace} s, and {needed:?} are needed");

    // The file is where the gateway looks for it, and all select the same pods.
    let [.., file] = container["args"].as_array().unwrap().as_slice() else { panic!() };
    let folder = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    assert_eq!(file, &format!("{folder}/idemptx.toml"));
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for selector in [
        &deployment["spec"]["selector"]["matchLabels"],
        &manifest("service.yaml")["spec"]["selector"],
        &manifest("disruption.yaml")["spec"]["selector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }
    let generated = &kustomization["configMapGenerator"][0]["name"];
    assert_eq!(&pod["volumes"][0]["configMap"]["name"], generated);
}

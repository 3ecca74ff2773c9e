//! Whether a ServiceNetwork can be rolled out, and what it comes to.
//!
//! Pure. The API server has refused most of what is wrong before; what it lets pass (a CRD of another
//! version, rules that were taken out) is refused here with the same sentences, and nothing of it
//! reaches a node.

use fairlead_crds::{NodeAgentConfig, ServiceNetwork, ServiceNetworkSpec, render};
use kube::core::DynamicObject;
use serde_json::json;

/// A spec that nothing can be made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct InvalidSpec(pub Vec<String>);

/// The config that a ServiceNetwork asks for.
///
/// It is read field by field from the object as it came: with the typed object a single value that
/// this version does not know would end the watch instead of becoming a condition.
pub fn validate(network: &DynamicObject) -> Result<NodeAgentConfig, InvalidSpec> {
    let spec = network.data.get("spec").filter(|spec| !spec.is_null()).cloned().unwrap_or_else(|| json!({}));
    let spec: ServiceNetworkSpec =
        serde_json::from_value(spec).map_err(|error| InvalidSpec(vec![format!("spec: {error}")]))?;
    let network = ServiceNetwork { metadata: network.metadata.clone(), spec, status: None };
    render(&network).map_err(|problems| InvalidSpec(problems.iter().map(ToString::to_string).collect()))
}

#[cfg(test)]
mod tests {
    use fairlead_crds::Scheduler;
    use kube::core::ApiResource;

    use serde_json::Value;

    use super::*;

    fn network(spec: &Value) -> DynamicObject {
        let resource = ApiResource::erase::<ServiceNetwork>(&());
        DynamicObject::new("cluster", &resource).data(json!({ "spec": spec }))
    }

    fn refusal(spec: &Value) -> String {
        validate(&network(spec)).unwrap_err().to_string()
    }

    #[test]
    fn a_good_spec_is_rendered() {
        let config = validate(&network(&json!({ "proxy": { "ipvs": { "scheduler": "mh" } } }))).unwrap();
        assert_eq!(config.proxy.ipvs.scheduler, Scheduler::Mh);
        assert_eq!(validate(&network(&json!({}))).unwrap(), NodeAgentConfig::default());
    }

    #[test]
    fn what_the_rules_refuse_is_refused_with_the_same_sentence() {
        assert_eq!(
            refusal(&json!({ "proxy": { "mode": "None", "markBit": 12 } })),
            "spec.proxy.markBit must not be set with mode None, which marks no packet: remove markBit, or set mode to IPVS"
        );
    }

    #[test]
    fn what_this_version_does_not_know_is_refused_and_not_ignored() {
        assert!(refusal(&json!({ "proxy": { "mode": "EBPF" } })).contains("unknown variant `EBPF`"));
        assert!(refusal(&json!({ "dns": {} })).contains("unknown field `dns`"));
    }
}

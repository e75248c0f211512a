"""The log of every rule that has none of its own, named after the rule and its wildcards.

Included last. Snakemake has no default for `log` that knows the rule's name.
"""

for found in workflow.rules:
    if "{log:q}" in (found.shellcmd or "") and not found.log:
        wildcards = [f"{{{name}}}" for name in sorted(found.wildcard_names)]
        found.log_modifier = workflow.modifier.path_modifier
        found.set_log(log("/".join([found.name, *wildcards])))

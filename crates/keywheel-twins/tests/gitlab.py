"""The usual client of GitLab before the twin: each rule that the driver relies on. Says what is wrong, or nothing.

It is the community's: GitLab's own command line is in no registry.
"""

import sys

import gitlab

ENDPOINT, TOKEN, OF_DEVELOPER, DEVELOPER = sys.stdin.read().split()


def project(endpoint=ENDPOINT, **known_by):
    client = gitlab.Gitlab(endpoint, retry_transient_errors=False, **known_by)
    return client.projects.get("acme/shop")


def refused(status, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except gitlab.exceptions.GitlabError as error:
        if error.response_code != status:
            sys.exit(f"{call.__qualname__}: {error.response_code} and not {status}: {error.error_message}")
        return error.error_message
    sys.exit(f"{call.__qualname__} is not refused with {status}")


def same(what, found, wanted):
    if found != wanted:
        sys.exit(f"{what}: {found} and not {wanted}")


def settings(variable):
    names = ("variable_type", "protected", "masked", "hidden", "raw", "environment_scope", "description")
    return tuple(getattr(variable, name) for name in names)


variables = project(private_token=TOKEN).variables
get, create, update, delete = variables.get, variables.create, variables.update, variables.delete
scope = lambda name: {"filter": {"environment_scope": name}}

# What a new one is set to, and what is set stays where a change does not say it.
made = create({"key": "PLAIN", "value": "kwcanary-one"})
same("a new variable", settings(made), ("env_var", False, False, False, False, "*", None))
said = {"variable_type": "file", "protected": True, "masked": True, "raw": True, "description": "for the provider"}
create({"key": "SET", "value": "kwcanary-old", "environment_scope": "production", **said})
update("SET", {"value": "kwcanary-new"})
changed = get("SET")
same("a variable that was changed", settings(changed), ("file", True, True, False, True, "production", said["description"]))
same("its value", changed.value, "kwcanary-new")
changed.masked = False
changed.save()
same("a setting that was changed", (get("SET").masked, get("SET").protected), (False, True))

# A key may have several, of different scopes: without a scope it names none of them.
refused(400, create, {"key": "SET", "value": "kwcanary-other", "environment_scope": "production"})
create({"key": "SET", "value": "kwcanary-other", "environment_scope": "staging"})
for call in (get, delete):
    if "filter[environment_scope]" not in refused(409, call, "SET"):
        sys.exit("a key of several variables: another reason")
refused(409, update, "SET", {"value": "x"})
same("a scope", get("SET", **scope("staging")).value, "kwcanary-other")
update("SET", {"value": "kwcanary-third"}, **scope("staging"))
values = [get("SET", **scope(name)).value for name in ("production", "staging")]
same("scopes", values, ["kwcanary-new", "kwcanary-third"])
# A scope is compared as it is written: no pattern finds another one.
refused(404, get, "SET", **scope("*"))
refused(404, get, "SET", **scope("prod*"))
delete("SET", **scope("staging"))
same("the scope that is left", get("SET").environment_scope, "production")

# What is masked, and where a hidden value is shown: nowhere again, also not by a change.
for value, raw in (("short", True), ("with a space", True), ("two\nlines-", True), ("kwcanary!$", False), ("éééé", True)):
    refused(400, create, {"key": "MASKED", "value": value, "masked": True, "raw": raw})
create({"key": "MASKED", "value": "kwcanary!$", "masked": True, "raw": True})
create({"key": "HIDDEN", "value": "kwcanary-hidden", "masked_and_hidden": True, "raw": True})
same("a hidden variable", (get("HIDDEN").value, get("HIDDEN").hidden, get("HIDDEN").masked), (None, True, True))
same("its change", update("HIDDEN", {"value": "kwcanary-more"})["value"], None)
refused(400, update, "HIDDEN", {"value": "kwcanary-less", "masked": False})
refused(400, update, "PLAIN", {"value": 10_001 * "x"})
update("PLAIN", {"value": 10_000 * "x"})
for key in ("A-KEY", "", 256 * "K"):
    refused(400, create, {"key": key, "value": "kwcanary"})

# A list has 20 on a page, if not more are asked for, and says where the next one is.
for number in range(120):
    create({"key": f"KEY_{number}", "value": "x"})
same("a page", len(variables.list(get_all=False)), 20)
same("the longest page", len(variables.list(get_all=False, per_page=1_000)), 100)
keys = [one.key for one in variables.list(get_all=True, per_page=50)]
same("all of them", (len(keys), len(set(keys))), (124, 124))

# What is not there, and who may not.
refused(404, get, "ANOTHER")
refused(404, update, "ANOTHER", {"value": "x"})
refused(404, delete, "ANOTHER")
refused(404, gitlab.Gitlab(ENDPOINT, private_token=TOKEN).projects.get, "acme/another")
refused(401, project, private_token="glpat-nobody")
same("a bearer", project(oauth_token=TOKEN).variables.get("PLAIN").key, "PLAIN")
of_developer = project(OF_DEVELOPER, private_token=DEVELOPER).variables
refused(403, of_developer.list)
refused(403, of_developer.update, "PLAIN", {"value": "x"})

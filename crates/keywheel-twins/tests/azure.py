"""Microsoft's own client before the twin: each rule that the driver relies on. Says what is wrong, or nothing.

It asks the official addresses. Its transport brings that to the twins, so that everything above it is as it always is: it insists on
HTTPS, signs in where the challenge says, and makes sure that the challenge is the vault's.
"""

import os
import sys
from urllib.parse import urlsplit

import requests
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import ClientSecretCredential, ManagedIdentityCredential, WorkloadIdentityCredential
from azure.keyvault.secrets import SecretClient

ENDPOINT, CLOSED, TENANT, CLIENT, SECRET, OF_CLOSED, SUBJECT, APP, APP_SECRET, TOKEN = sys.stdin.read().split()
VAULT = "https://shop.vault.azure.net"
SCOPE = "https://vault.azure.net/.default"


class ToTwin(requests.adapters.HTTPAdapter):
    def __init__(self, endpoint):
        super().__init__()
        self.endpoint = endpoint

    def send(self, request, **settings):
        address = urlsplit(request.url)
        request.headers["Host"] = address.netloc
        request.url = self.endpoint + request.url.removeprefix(f"https://{address.netloc}")
        return super().send(request, **settings)


def through(endpoint):
    session = requests.Session()
    session.trust_env = False
    session.mount("https://", ToTwin(endpoint))
    return {"transport": RequestsTransport(session=session, session_owner=False), "retry_total": 0}


def vault(endpoint, secret, url=VAULT):
    signs_in = ClientSecretCredential(TENANT, CLIENT, secret, **through(endpoint))
    return SecretClient(url, signs_in, **through(endpoint))


def refused(status, inner, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except HttpResponseError as error:
        told = ((error.error and error.error.innererror) or {}).get("code")
        if (error.status_code, told) != (status, inner):
            sys.exit(f"{call.__name__}: {error.status_code} {told} and not {status} {inner}")
        return error
    sys.exit(f"{call.__name__} is not refused with {status}")


def same(what, found, wanted):
    if found != wanted:
        sys.exit(f"{what}: {found} and not {wanted}")


def value(version=None):
    return client.get_secret("api-key", version).value


client = vault(ENDPOINT, SECRET)
put = client.set_secret
listed = client.list_properties_of_secret_versions

# The first answer is a challenge; only then is the value sent. Each put makes a version, also of the same value.
refused(404, None, client.get_secret, "api-key")
tags = {"keywheel-write": "m1", "team": "shop"}
first, second, third = (
    put("api-key", f"kwcanary-{text}", tags=tags, content_type="text/plain").properties for text in ("one", "two", "two")
)
same("versions", len({first.version, second.version, third.version}), 3)
same("newest", value(), "kwcanary-two")
same("a version", value(first.version), "kwcanary-one")
same("tags", (client.get_secret("api-key").properties.tags, third.content_type), (tags, "text/plain"))
refused(404, None, value, 32 * "0")

# Asked too often, it says for how long; else a list goes on over pages, in no order of time.
busy = refused(429, None, next, listed("api-key"))
same("the wait", busy.response.headers["retry-after"], "3600")
found = list(listed("api-key", max_page_size=2))
same("pages", {one.version for one in found}, {first.version, second.version, third.version})
same("order", [one.version for one in found], sorted(one.version for one in found))
same("tags in a list", [one.tags for one in found], 3 * [tags])
refused(400, None, next, listed("api-key", max_page_size=26))

# What is changed of a version: its tags as a whole, and whether it can be read. The newest is what readers get, disabled or not.
update = client.update_secret_properties
update("api-key", second.version, tags={"only": "this"})
update("api-key", second.version, enabled=False)
changed = {one.version: (one.tags, one.enabled) for one in listed("api-key")}
same("a version that was changed", changed[second.version], ({"only": "this"}, False))
same("another version", changed[third.version], (tags, True))
refused(403, "SecretDisabled", value, second.version)
same("newest", value(), "kwcanary-two")
update("api-key", third.version, enabled=False)
refused(403, "SecretDisabled", value)
update("api-key", third.version, enabled=True)
refused(404, None, update, "api-key", 32 * "0", enabled=False)

# What a vault does not hold.
for wrong in ({"name": "api_key", "value": "x"}, {"name": "api-key", "value": 25_601 * "x"}):
    refused(400, None, put, **wrong)
for wrong in ({str(number): "x" for number in range(16)}, {"x": 257 * "x"}, {257 * "x": "x"}):
    refused(400, None, put, "api-key", "x", tags=wrong)
put("other", 25_600 * "x", tags={str(number): 256 * "x" for number in range(15)})
same("a version that is put disabled", put("other", "x", enabled=False).value, "x")
refused(403, "SecretDisabled", client.get_secret, "other")

# A deleted name stays taken until it is recovered or purged.
refused(404, None, client.get_deleted_secret, "api-key")
deleted = client.begin_delete_secret("api-key").result()
same("where it is recovered", deleted.recovery_id, f"{VAULT}/deletedsecrets/api-key")
refused(404, None, client.get_secret, "api-key")
refused(404, None, client.begin_delete_secret, "api-key")
refused(409, "ObjectIsDeletedButRecoverable", put, "api-key", "x")
client.begin_recover_deleted_secret("api-key").wait()
same("recovered", (value(), value(first.version)), ("kwcanary-two", "kwcanary-one"))
client.begin_delete_secret("api-key").wait()
client.purge_deleted_secret("api-key")
refused(404, None, client.get_deleted_secret, "api-key")
refused(404, None, client.purge_deleted_secret, "api-key")
same("a name that is free", put("api-key", "kwcanary-new").properties.tags, {})

# Who may not, whose secret is wrong, and what is no vault of the challenge.
closed = vault(CLOSED, OF_CLOSED)
refused(403, "ForbiddenByRbac", closed.get_secret, "api-key")
try:
    vault(ENDPOINT, "wrong").get_secret("api-key")
    sys.exit("a wrong secret is let in")
except ClientAuthenticationError:
    pass
try:
    vault(ENDPOINT, SECRET, "https://vault.example.com").get_secret("api-key")
    sys.exit("a challenge for another resource is believed")
except ValueError:
    pass

# The other ways to sign in.
with open("subject", "w") as out:
    out.write(SUBJECT)
of_cluster = WorkloadIdentityCredential(
    tenant_id=TENANT, client_id=CLIENT, token_file_path="subject", **through(ENDPOINT)
)
same("the token of a cluster", of_cluster.get_token(SCOPE).token, TOKEN)
os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = ENDPOINT
for identity in ({}, {"client_id": CLIENT}):
    same("the token of a machine", ManagedIdentityCredential(**identity).get_token(SCOPE).token, TOKEN)
os.environ.update(IDENTITY_ENDPOINT=APP, IDENTITY_HEADER=APP_SECRET)
same("the token of an app", ManagedIdentityCredential().get_token(SCOPE).token, TOKEN)
os.environ["IDENTITY_HEADER"] = "wrong"
try:
    ManagedIdentityCredential().get_token(SCOPE)
    sys.exit("an app that is not known is let in")
except ClientAuthenticationError:
    pass

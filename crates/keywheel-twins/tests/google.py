"""Google's own client of Secret Manager before the twin. Says what is wrong, or nothing."""

import sys
from google.api_core import exceptions
from google.cloud import secretmanager_v1 as sm
from google.auth.exceptions import RefreshError
from google.oauth2.credentials import Credentials

def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0x82f63b78 if crc & 1 else crc >> 1
    return crc ^ 0xffffffff

endpoint, token = sys.stdin.read().split()
client = sm.SecretManagerServiceClient(
    transport="rest", credentials=Credentials(token=token), client_options={"api_endpoint": endpoint})
name = "projects/shop-production/secrets/api-key"

def refused(kind, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")

parent = {"replication": {"automatic": {}}}
client.create_secret(parent="projects/shop-production", secret_id="api-key", secret=parent)
refused(exceptions.Conflict, client.create_secret,
        parent="projects/shop-production", secret_id="api-key", secret=parent)
refused(exceptions.NotFound, client.access_secret_version, name=f"{name}/versions/latest")
def add(data):
    checked = {"data": data, "data_crc32c": crc32c(data)}
    return client.add_secret_version(parent=name, payload=checked).name.split("/")[-1]
assert [add(b"kwcanary-one"), add(b"kwcanary-two"), add(b"kwcanary-two")] == ["1", "2", "3"]
wrong = {"data": b"kwcanary-three", "data_crc32c": 1}
refused(exceptions.BadRequest, client.add_secret_version, parent=name, payload=wrong)
got = client.access_secret_version(name=f"{name}/versions/latest")
assert got.payload.data == b"kwcanary-two" and got.name.endswith("/versions/3")
assert got.payload.data_crc32c == crc32c(b"kwcanary-two")

secret = client.get_secret(name=name)
def moved(etag, version):
    changed = {"name": name, "etag": etag, "version_aliases": {"live": version}}
    return client.update_secret(secret=changed, update_mask={"paths": ["version_aliases"]})
after = moved(secret.etag, 1)
assert dict(after.version_aliases) == {"live": 1} and after.etag != secret.etag
refused(exceptions.BadRequest, moved, secret.etag, 2)
assert client.access_secret_version(name=f"{name}/versions/live").payload.data == b"kwcanary-one"
client.update_secret(secret={"name": name, "annotations": {"team": "shop"}},
                     update_mask={"paths": ["annotations"]})
assert dict(client.get_secret(name=name).annotations) == {"team": "shop"}

newest = [version.name.split("/")[-1] for version in client.list_secret_versions(
    request={"parent": name, "page_size": 2})]
assert newest == ["3", "2", "1"], newest
version = client.get_secret_version(name=f"{name}/versions/2")
client.destroy_secret_version(request={"name": f"{name}/versions/2", "etag": version.etag})
refused(exceptions.BadRequest, client.access_secret_version, name=f"{name}/versions/2")
refused(exceptions.BadRequest, client.enable_secret_version, name=f"{name}/versions/2")
client.disable_secret_version(name=f"{name}/versions/3")
refused(exceptions.BadRequest, client.access_secret_version, name=f"{name}/versions/latest")
asked = ["secretmanager.versions.add", "secretmanager.versions.list"]
granted = client.test_iam_permissions(request={"resource": name, "permissions": asked})
assert list(granted.permissions) == asked
stranger = sm.SecretManagerServiceClient(
    transport="rest", credentials=Credentials(token="kwcanary-no"), client_options={"api_endpoint": endpoint})
# The client takes the 401 as the end of its token.
refused(RefreshError, stranger.get_secret, name=name)

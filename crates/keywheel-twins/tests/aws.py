"""AWS's own client before the twin: each rule that an emulator may be lax about. Says what is wrong, or nothing."""

import os
import sys

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT, ID, SECRET = (os.environ[name] for name in ("TWIN", "TWIN_ID", "TWIN_SECRET"))
CONFIG = Config(retries={"max_attempts": 0})


def client(service, key=(ID, SECRET)):
    return botocore.session.get_session().create_client(
        service,
        region_name="eu-west-1",
        endpoint_url=ENDPOINT,
        aws_access_key_id=key[0],
        aws_secret_access_key=key[1],
        config=CONFIG,
    )


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] != code:
            sys.exit(f"{call.__name__}: {error.response['Error']['Code']} and not {code}")
    else:
        sys.exit(f"{call.__name__} is not refused with {code}")


def same(what, found, wanted):
    if found != wanted:
        sys.exit(f"{what}: {found} and not {wanted}")


secrets = client("secretsmanager")
NAME = {"SecretId": "shop/app"}
first = secrets.get_secret_value(**NAME)["VersionId"]
put = secrets.put_secret_value
token = "token-" + 30 * "x"
staged = {**NAME, "ClientRequestToken": token, "VersionStages": ["AWSPENDING"]}
for _ in range(2):
    same("a put", put(SecretString="new", **staged)["VersionId"], token)
refused("ResourceExistsException", put, SecretString="another", **staged)
refused("InvalidParameterException", put, SecretString=65_537 * "x", **{**staged, "ClientRequestToken": 40 * "y"})
same("current", secrets.get_secret_value(**NAME)["VersionId"], first)
same("pending", secrets.get_secret_value(VersionStage="AWSPENDING", **NAME)["SecretString"], "new")
stage = secrets.update_secret_version_stage
current = {**NAME, "VersionStage": "AWSCURRENT"}
refused("InvalidParameterException", stage, MoveToVersionId=token, **current)
refused("InvalidParameterException", stage, MoveToVersionId=token, RemoveFromVersionId=token, **current)
refused("InvalidParameterException", stage, RemoveFromVersionId=first, **current)
stage(MoveToVersionId=token, RemoveFromVersionId=first, **current)
stage(VersionStage="AWSPENDING", RemoveFromVersionId=token, **NAME)
stages = secrets.describe_secret(**NAME)["VersionIdsToStages"]
same("labels", stages, {token: ["AWSCURRENT"], first: ["AWSPREVIOUS"]})
refused("InvalidRequestException", secrets.get_secret_value, VersionId=first, VersionStage="AWSCURRENT", **NAME)
refused("ResourceNotFoundException", secrets.describe_secret, SecretId="elsewhere")
refused("InvalidSignatureException", client("secretsmanager", (ID, "wrong")).describe_secret, **NAME)
refused("UnrecognizedClientException", client("secretsmanager", ("AKIANOBODY", SECRET)).describe_secret, **NAME)

iam = client("iam")
USER = {"UserName": "backend"}
one, two = (iam.create_access_key(**USER)["AccessKey"] for _ in range(2))
refused("LimitExceeded", iam.create_access_key, **USER)
listed = iam.get_paginator("list_access_keys").paginate(**USER).build_full_result()
ids = [key["AccessKeyId"] for key in listed["AccessKeyMetadata"]]
same("keys", ids, [one["AccessKeyId"], two["AccessKeyId"]])
identity = client("sts", (one["AccessKeyId"], one["SecretAccessKey"])).get_caller_identity
same("identity", identity()["Arn"].rsplit("/", 1)[-1], "backend")
refused("SignatureDoesNotMatch", client("sts", (one["AccessKeyId"], "wrong")).get_caller_identity)
iam.update_access_key(AccessKeyId=one["AccessKeyId"], Status="Inactive", **USER)
refused("InvalidClientTokenId", identity)
iam.update_access_key(AccessKeyId=one["AccessKeyId"], Status="Active", **USER)
identity()
used = iam.get_access_key_last_used(AccessKeyId=one["AccessKeyId"])
same("last use", used["AccessKeyLastUsed"].get("LastUsedDate"), None)
iam.delete_access_key(AccessKeyId=one["AccessKeyId"], **USER)
refused("InvalidClientTokenId", identity)
refused("NoSuchEntity", iam.delete_access_key, AccessKeyId=one["AccessKeyId"], **USER)
refused("NoSuchEntity", iam.list_access_keys, UserName="nobody")

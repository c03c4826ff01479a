"""Performs RPCs with OPI's generated stubs: one JSON request per line of standard input, one JSON reply per line."""

import importlib
import json
import pathlib
import sys

import grpc
import pydpu.proto.v1 as stubs
from google.protobuf import json_format


def modules():
    """Each generated module with its service module."""
    for path in sorted(pathlib.Path(stubs.__file__).parent.glob("*_pb2_grpc.py")):
        name = path.stem.removesuffix("_grpc")
        if name.startswith(("frontend_", "backend_", "middleend_", "inventory")):
            yield importlib.import_module(name), importlib.import_module(path.stem)


def main():
    channel = grpc.insecure_channel(sys.argv[1])
    services = {}
    for messages, clients in modules():
        for service in messages.DESCRIPTOR.services_by_name:
            services[service] = messages, getattr(clients, service + "Stub")(channel)
    for line in sys.stdin:
        call = json.loads(line)
        service, method = call["rpc"].split("/")
        messages, client = services[service]
        kind = messages.DESCRIPTOR.services_by_name[service].methods_by_name[method].input_type
        request = json_format.ParseDict(call["request"], getattr(messages, kind.name)())
        try:
            response = getattr(client, method)(request, timeout=30)
            reply = {"response": json_format.MessageToDict(response)}
        except grpc.RpcError as error:
            reply = {"code": error.code().name, "message": error.details()}
        print(json.dumps(reply), flush=True)


main()

#!/usr/bin/env python3
"""Checks cluster/deploy without a container engine: files parse, refer to what exists, and use flags that the program has.

usage: deploy_test.py SOURCE_DIR PERIGEE_PROGRAM     exit code 77: PyYAML is not here.
"""
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

try:
    import yaml
except ImportError:
    print("skipped: needs PyYAML (Debian: python3-yaml)")
    sys.exit(77)

SOURCE = pathlib.Path(sys.argv.pop(1))
PROGRAM = sys.argv.pop(1)
DEPLOY = SOURCE / "cluster" / "deploy"
ROLES = ["store", "prefill", "decode", "gateway"]


def known_flags(role):
    text = subprocess.run([PROGRAM, "serve", role, "--help"], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"--[a-z][a-z0-9-]*", text))


def documents(folder):
    return [(path.name, document) for path in sorted(folder.glob("*.yaml"))
            for document in yaml.safe_load_all(path.read_text()) if document]


class Arguments(unittest.TestCase):
    flags = {role: known_flags(role) for role in ROLES}

    def check(self, where, arguments):
        """arguments: those of `perigee`: serve ROLE --flag=value ..."""
        self.assertEqual(arguments[0], "serve", where)
        role = arguments[1]
        self.assertIn(role, ROLES, where)
        for argument in arguments[2:]:
            self.assertRegex(argument, r"^--[a-z-]+(=.+)?$", where)
            self.assertIn(argument.split("=")[0], self.flags[role], f"{where}: serve {role} has no such flag")
        self.check_addresses(where, role, dict(a[2:].split("=", 1) for a in arguments[2:] if "=" in a))
        return role

    def check_addresses(self, where, role, values):
        """What is told to the others is where somebody listens."""
        if "listen" not in values:
            return
        self.assertEqual(values["listen"].split(":")[0], "0.0.0.0", where)
        grpc = values["admin-listen"] if role == "gateway" else values["listen"]
        host, port = values["advertise"].rsplit(":", 1)
        self.assertNotIn(host, ("", "0.0.0.0", "127.0.0.1", "localhost"), where)
        self.assertEqual(grpc, f"0.0.0.0:{port}", where)

    def test_compose(self):
        compose = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
        services = compose["services"]
        roles = {name: self.check(name, service["command"]) for name, service in services.items()
                 if service.get("image", "").startswith("perigee")}
        for role, count in {"store": 2, "prefill": 2, "decode": 2, "gateway": 1}.items():
            self.assertEqual(list(roles.values()).count(role), count, role)
        for name, service in services.items():
            self.assertIn("healthcheck", service, name)
            for other in service.get("depends_on", {}):
                self.assertIn(other, services, name)
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    self.assertTrue((DEPLOY / source).exists(), f"{name}: {source}")
                else:
                    self.assertIn(source, compose["volumes"], name)
            if name not in roles:
                continue
            values = dict(a[2:].split("=", 1) for a in service["command"][2:] if "=" in a)
            self.assertEqual(values["id"], name)
            self.assertEqual(values["advertise"].split(":")[0], name)
            self.assertIn(":9100/", service["healthcheck"]["test"][-1], name)
            self.assertTrue(values["metrics-listen"].endswith(":9100"), name)

    def test_prometheus_scrapes_what_runs(self):
        services = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"]
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        targets = [target.split(":")[0] for job in config["scrape_configs"] for s in job["static_configs"]
                   for target in s["targets"]]
        self.assertEqual(sorted(targets), sorted(set(services) - {"prometheus", "grafana"}))
        for rules in config["rule_files"]:
            self.assertTrue((DEPLOY / "prometheus" / rules).exists(), rules)
        names = set()
        for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]:
            for rule in group["rules"]:
                self.assertLessEqual({"alert", "expr", "labels", "annotations"}, set(rule))
                self.assertNotIn(rule["alert"], names)
                names.add(rule["alert"])
        self.assertGreater(len(names), 5)

    def test_kubernetes(self):
        found = documents(DEPLOY / "kubernetes")
        pods, budgets, services = {}, [], {}
        for path, document in found:
            self.assertIn("apiVersion", document, path)
            if document["kind"] in ("StatefulSet", "Deployment"):
                self.check_workload(path, document)
                pods[document["metadata"]["name"]] = document["spec"]["template"]["metadata"]["labels"]
                if document["kind"] == "StatefulSet":
                    self.assertIn(document["spec"]["serviceName"],
                                  [d["metadata"]["name"] for _, d in found if d["kind"] == "Service"])
            elif document["kind"] == "PodDisruptionBudget":
                budgets.append(document["spec"]["selector"]["matchLabels"])
            elif document["kind"] == "Service":
                services[document["metadata"]["name"]] = document["spec"]
        for role in ROLES:
            self.assertIn(f"perigee-{role}", pods)
            self.assertIn(pods[f"perigee-{role}"], budgets)
        for name, service in services.items():
            self.assertTrue(any(service["selector"].items() <= labels.items() for labels in pods.values()), name)
        listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
        self.assertEqual(sorted(listed + ["kustomization.yaml"]),
                         sorted(path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")))

    def check_workload(self, path, document):
        spec = document["spec"]["template"]["spec"]
        labels = document["spec"]["template"]["metadata"]["labels"]
        self.assertLessEqual(document["spec"]["selector"]["matchLabels"].items(), labels.items(), path)
        self.assertTrue(spec["securityContext"]["runAsNonRoot"], path)
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
        for container in spec["containers"]:
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                self.assertIn(container[probe]["httpGet"]["port"], ports, f"{path}: {probe}")
            self.assertLessEqual({"cpu", "memory"}, set(container["resources"]["requests"]), path)
            startup = container["startupProbe"]
            if container["image"].startswith("perigee"):  # Large models take their time.
                self.assertGreaterEqual(startup["periodSeconds"] * startup["failureThreshold"], 20 * 60, path)
            for mount in container["volumeMounts"]:
                self.assertIn(mount["name"], volumes, path)
            if not container["image"].startswith("perigee"):
                continue
            self.check(path, container["args"])
            variables = {variable["name"] for variable in container["env"]}
            self.assertLessEqual(set(re.findall(r"\$\(([A-Z_]+)\)", " ".join(container["args"]))), variables, path)
            # What is begun must have the time to end.
            drain = [float(a.split("=")[1]) for a in container["args"] if a.startswith("--drain-s=")]
            stop = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
            self.assertGreater(spec["terminationGracePeriodSeconds"], sum(drain) + float(stop[1]), path)

    def test_systemd_units(self):
        for role in ROLES:
            path = DEPLOY / "systemd" / f"perigee-{role}@.service"
            line = next(line for line in path.read_text().splitlines() if line.startswith("ExecStart="))
            words = [word for word in line.removeprefix("ExecStart=").split() if not word.startswith("$")]
            self.assertEqual(self.check(path.name, words[1:]), role)
            example = (DEPLOY / "systemd" / f"{role}1.env.example").read_text()
            more = next(line for line in example.splitlines() if line.startswith("PERIGEE_ARGS="))
            self.check(f"{role}1.env.example", ["serve", role] + more.removeprefix("PERIGEE_ARGS=").split())
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            for role in ROLES:
                text = (DEPLOY / "systemd" / f"perigee-{role}@.service").read_text()
                unit = pathlib.Path(folder) / f"perigee-{role}@.service"
                unit.write_text(text.replace("/usr/bin/perigee", PROGRAM))
                said = subprocess.run([analyze, "verify", "--man=no", f"{folder}/perigee-{role}@{role}1.service"],
                                      capture_output=True, text=True)
                # It also complains about units of the machine that it runs on.
                ours = [line for line in said.stderr.splitlines() if "perigee" in line and "User" not in line]
                self.assertEqual(ours, [], said.stderr)

    def test_dockerfile_copies_what_exists(self):
        for line in (DEPLOY / "Dockerfile").read_text().splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                self.assertTrue((SOURCE / line.split()[1]).exists(), line)
        self.assertIn("cp build/release/model/libperigee_sentencepiece.so /out/bin/", (DEPLOY / "Dockerfile").read_text())
        self.assertIn("\nUSER 10001\n", (DEPLOY / "Dockerfile").read_text())

    def test_dashboard_panels_are_whole(self):
        board = json.loads((DEPLOY / "grafana" / "perigee.json").read_text())
        ids = [panel["id"] for panel in board["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        for panel in board["panels"]:
            if panel["type"] == "row":
                continue
            self.assertTrue(panel["targets"], panel["title"])
            self.assertLessEqual(panel["gridPos"]["x"] + panel["gridPos"]["w"], 24, panel["title"])
            for target in panel["targets"]:
                self.assertEqual(target["expr"].count("("), target["expr"].count(")"), panel["title"])


if __name__ == "__main__":
    unittest.main()

"""launch/gpu with a fake ssh, whose hosts are folders."""

import time

HOSTS = ("--hosts=a,me@b",)


def test_processes_on_all_hosts_and_their_end(room):
  source = f"--source={room.repository}"
  place = "$DIFFJAX_PROCESS/$DIFFJAX_PROCESSES on $DIFFJAX_LOCAL_DEVICES at $DIFFJAX_COORDINATOR"
  code = f"trap 'exit 75' TERM; echo {place}; for ((;;)); do sleep 0.05; done"
  words = (*HOSTS, source, "--per=gpu", "--gpus=2", "--env=A=b;$(c)", "--", "bash", "-c", code)
  room.run("gpu/multihost.sh", "start", *words)
  assert "going on" in room.run("gpu/multihost.sh", "start", *words, code=64)
  end = time.monotonic() + 60
  while (said := room.run("gpu/multihost.sh", "logs", *HOSTS, source)).count(" at ") < 4:
    assert time.monotonic() < end, said
  for host, process in ((0, 0), (0, 1), (1, 2), (1, 3)):
    assert f"{process}/4 on {process % 2} at a:8476" in said
    assert any(f"[w{host}]" in line and f"[p{process}]" in line for line in said.splitlines())
  assert room.run("gpu/multihost.sh", "status", *HOSTS, source).count("running") == 2
  said = room.run("gpu/multihost.sh", "stop", *HOSTS, source, "--seconds=20", code=75)
  assert said.count("exit 75 stopped") == 2


def test_a_host_that_cannot_be_reached_is_named(room):
  words = ("--hosts=unreachable", f"--source={room.repository}", "--per=node", "--", "true")
  assert "unreachable cannot be reached" in room.run("gpu/multihost.sh", "start", *words, code=69)

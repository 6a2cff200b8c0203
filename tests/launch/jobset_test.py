"""launch/gke with a fake kubectl."""

import json

WORDS = (
  "--name=xxl", "--generation=v6e", "--topology=4x4", "--image=i", "--claim=runs", "--", "diffjax",
  "train", "--workdir=/runs/x y", "a;$(b)",
)  # fmt: skip


def test_what_runs_is_left_alone_and_what_ended_is_replaced(room):
  room.run("gke/jobset.sh", "apply", *WORDS)
  assert [line.split()[1] for line in room.noted()] == ["get", "apply"]
  (command,) = (
    line for line in (room.cloud / "applied.yaml").read_text().splitlines() if "command:" in line
  )
  words = json.loads(command.partition("command: ")[2])
  assert words[-4:] == ["diffjax", "train", "--workdir=/runs/x y", "a;$$(b)"]
  assert "--starts=/runs/x y.launch/$(DIFFJAX_RUN)" in words
  assert "runs already" in room.run("gke/jobset.sh", "apply", *WORDS, FAKE_JOBSET="xxl ")
  room.run("gke/jobset.sh", "apply", *WORDS, FAKE_JOBSET="xxl Failed")
  assert [line.split()[1] for line in room.noted()[3:]] == ["get", "delete", "apply"]


def test_mistakes_are_found_before_the_cluster_is_asked(room):
  for words, said in [
    (("--topology=4x", *WORDS[3:]), "--topology"),
    (("--topology=4x4", "--image=i", "--", "a", "--workdir=/elsewhere/x"), "below --mount"),
    (("--topology=4x4", "--image=i", "--", "a", "--workdir=/runs/x"), "--claim"),
  ]:
    assert said in room.run("gke/jobset.sh", "apply", *WORDS[:2], *words, code=64)
  assert not room.noted()

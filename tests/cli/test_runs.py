import json
import shutil
import subprocess
import sys

from command_line import failed, succeeded

from autoregressive_diffusion_pytorch.runs.record import RunRecord
from autoregressive_diffusion_pytorch.runs.summary import summary


def test_lists_the_runs_in_a_folder(call, tmp_path, trained):
    shutil.copytree(trained, tmp_path / "runs" / "a")
    shutil.copytree(trained, tmp_path / "runs" / "deep" / "b")
    (tmp_path / "runs" / "a-broken" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "a-broken" / "config.json").write_text("{}")
    lines = succeeded(call("runs")).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "a", "a-broken", "deep/b"]
    assert "4 / 4" in lines[1]
    assert "validation" in lines[1]
    assert "lacks the key 'source'" in lines[2]
    assert succeeded(call("runs", "runs/deep/b")).stdout.splitlines()[1].startswith("b ")


def test_writes_json(call, tmp_path, trained):
    shutil.copytree(trained, tmp_path / "a")
    rows = json.loads(succeeded(call("runs", tmp_path, "--json")).stdout)
    assert rows == [summary(RunRecord(tmp_path / "a"))]


def test_says_that_a_folder_holds_none(call):
    assert succeeded(call("runs")).stdout == "runs holds no runs: `ardiff train` starts one\n"
    assert succeeded(call("runs", "--json")).stdout == "[]\n"


def test_comes_without_torch(trained):
    script = (
        "import sys; from autoregressive_diffusion_pytorch.cli import main\n"
        "main(['runs', sys.argv[1]], standalone_mode=False)\n"
        "main(['compare', *sys.argv[1:], '--output', sys.argv[1] + '/../c.html'], "
        "standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(trained), str(trained)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"


def test_tells_of_a_run_while_it_is_trained(call, tmp_path, trained):
    run = RunRecord(trained)
    file = shutil.copytree(trained, tmp_path / "runs" / "a") / "progress.json"
    file.write_text(json.dumps(run.progress | dict(state="running", step=3)))
    (line,) = succeeded(call("runs")).stdout.splitlines()[1:]
    assert line.endswith("running")
    assert "3 / 4" in line


def test_compares_runs_in_a_page_or_picture(call, tmp_path, trained):
    shutil.copytree(trained, tmp_path / "a")
    assert succeeded(call("compare", trained, "a")).stdout == "compare.html\n"
    assert (tmp_path / "compare.html").read_text().startswith("<!doctype html>")
    assert succeeded(call("compare", trained, "a", "--step", 2, "--output", "b/c.png"))
    assert (tmp_path / "b" / "c.png").read_bytes().startswith(b"\x89PNG")


def test_says_what_it_cannot_compare(call, tmp_path, trained):
    assert "takes two runs or more" in failed(call("compare", trained))
    message = failed(call("compare", trained, trained, "--output", "a.pdf"))
    assert "a.pdf must end in .html or .png" in message
    assert "step 3 has no samples of" in failed(call("compare", trained, trained, "--step", 3))
    assert "holds no config.json" in failed(call("compare", trained, tmp_path))
    assert list(tmp_path.iterdir()) == []

import subprocess
import sys

PROGRAM = """
import sys
import pyarrow
from tasks.runtime.stage_main import skip_pandas_import
skip_pandas_import()
table = pyarrow.table({"number": [1, 2], "word": ["a", "b"]})
assert "pandas" not in sys.modules
frame = table.to_pandas()
assert pyarrow.Table.from_pandas(frame, schema=table.schema).equals(table)
assert pyarrow.array(frame["number"]).equals(table["number"].chunk(0))
"""


def test_a_stage_imports_pandas_only_where_it_uses_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

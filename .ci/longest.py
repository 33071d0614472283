"""Print the longest files and functions of a package, in lines."""

import ast
import sys
from pathlib import Path

files, functions = [], []
for path in sorted(Path(sys.argv[1]).rglob("*.py")):
    text = path.read_text()
    files.append((text.count("\n"), str(path)))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            functions.append((length, f"{path}:{node.lineno} {node.name}"))
for title, rows in (("files", files), ("functions", functions)):
    print(f"longest {title} of {len(rows)}, {sum(n for n, _ in rows)} lines in all")
    for length, name in sorted(rows, reverse=True)[:5]:
        print(f"  {length:4} {name}")

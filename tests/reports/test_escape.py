from reports.escape import fenced, inline, markdown, plain


def test_plain_shows_what_would_act() -> None:
    assert plain("a\tb\nc\x1b[2J\r\x07\u202e\x9b\ud800") == "a\tb\nc\\x1b[2J\\r\\x07\\u202e\\x9b\\ud800"
    assert plain("x Wᵀ · ≤ λ 漢") == "x Wᵀ · ≤ λ 漢"


def test_inline_is_one_line() -> None:
    assert inline(" a\n b\t c ") == "a b c"


def test_markdown_leaves_no_markup() -> None:
    assert markdown("a|b `c` *d* _e_ [f](g) <h> & # ~ !") == r"a\|b \`c\` \*d\* \_e\_ \[f\](g) &lt;h&gt; &amp; \# \~ \!"


def test_a_fence_outgrows_what_it_holds() -> None:
    assert fenced("```\n````") == "`````text\n```\n````\n`````"
    assert fenced("a") == "```text\na\n```"

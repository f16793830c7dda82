"""Shapes over dictionaries, and the classes; notation in `markup`."""

from __future__ import annotations

from dagger_nb.tasks.markup import parse

TABLES = parse("""
@tally tally count | a:words -> counts
def $f($a):
    '''Return a dict of how often each $a1 occurs.'''
    $out = {}
    for $a1 in $a:
        $out[$a1] = $out.get($a1, «0|1:start_value») «+|-:operator» «1|2:constant»
    return $out

@fields price rate | a:record -> int
def $f($a):
    '''Return the $k of $a $op its $l.'''
    return $a['«$k|$l:dict_key»'] %op $a['«$l|$k:dict_key»']

@table_sum total sum | a:counts -> int
def $f($a):
    '''Return the $agg of the values of $a.'''
    $acc = %agg.start
    for $key in $a:
        $acc %agg.op $a[$key]
    return $acc

@look look fetch | a:counts b:word -> int
def $f($a, $b):
    '''Return the value of $b in $a, or $num if it has none.'''
    return $a.get($b, %num)

@rich rich keep | a:counts b:int -> words
def $f($a, $b):
    '''Return the keys of $a with a value $cmp $b, in order.'''
    return [$key for $key in $a if $a[$key] %cmp $b]

@best_key best lead | a:counts -> text
def $f($a):
    '''Return the key of $a with the $most value, or else ''.'''
    $best = ''
    for $key in $a:
        if $best == '' or $a[$key] %most $a[$best]:
            $best = $key
    return $best

@book book enter | a:counts b:word c:int -> counts
def $f($a, $b, $c):
    '''Return a copy of $a with $c at the key $b.'''
    $out = dict($a)
    $out[«$b|$c:dict_key»] = «$c|$b:variable»
    return $out

@raise raise grow | a:counts b:word -> counts
def $f($a, $b):
    '''Return a copy of $a with $num added to $b, or to $st if new.'''
    $out = dict($a)
    $out[$b] = $out.get($b, %st) «+|-:operator» %num
    return $out

@make make build | a:int b:int -> table
def $f($a, $b):
    '''Return a dict with $a at '$k' and $b at '$l'.'''
    return {'«$k|$l:dict_key»': $a, '$l': «$b|$a:variable»}

@record_if claim settle | a:record b:int -> int
def $f($a, $b):
    '''Return the $k of $a if it is $cmp $b.'''
    if $a['«$k|$l:dict_key»'] %cmp $b:
        return $a['«$k|$l:dict_key»']
    # else its $l
    return $a['«$l|$k:dict_key»']

@record_test pass check | a:record -> bool
def $f($a):
    '''Return whether the $k of $a is $cmp its $l.'''
    return $a['«$k|$l:dict_key»'] %cmp $a['«$l|$k:dict_key»']

@record_list list report | a:record b:int -> ints
def $f($a, $b):
    '''Return a list of the $k of $a $op $b, and its $l.'''
    return [$a['«$k|$l:dict_key»'] %op $b, $a['«$l|$k:dict_key»']]

@record_cost cost value | a:record b:int -> int
def $f($a, $b):
    '''Return the $k of $a times $b, $add its $l.'''
    return $a['«$k|$l:dict_key»'] * $b %add $a['«$l|$k:dict_key»']

@record_mm best bound | a:record -> int
def $f($a):
    '''Return the $mm of the $k and the $l of $a, $op $num.'''
    return %mm($a['$k'], $a['«$l|$k:dict_key»']) %op %num

@record_text show print | a:record -> text
def $f($a):
    '''Return the $k of $a, then $sep, then its $l, as text.'''
    return str($a['«$k|$l:dict_key»']) + %sep + str($a['«$l|$k:dict_key»'])

@group group sort | a:words -> table
def $f($a):
    '''Return a dict from each length to its $a, in order.'''
    $out = {}
    for $a1 in $a:
        $out.setdefault(len($a1), []).«append(|insert(0, :method»$a1)
    return $out

@places index place | a:words -> counts
def $f($a):
    '''Return a dict from each $a1 to its index, from $st on.'''
    $out = {}
    for $i, $a1 in enumerate($a, %st):
        $out[«$a1|$i:dict_key»] = «$i|$a1:variable»
    return $out

@invert turn flip | a:counts -> table
def $f($a):
    '''Return a dict from each value of $a to its key.'''
    $out = {}
    for $key in $a:
        $out[«$a[$key]|$key:dict_key»] = «$key|$a[$key]:variable»
    return $out

@has has know | a:counts b:word -> bool
def $f($a, $b):
    '''Return whether $b is in $a with a value $cmp $lim.'''
    return $b in $a «and|or:boolean» $a.get($b, 0) %cmp %lim

@scale_table scale adapt | a:counts b:int -> counts
def $f($a, $b):
    '''Return a dict from each key of $a to its value $op $b.'''
    $out = {}
    for $key in $a:
        $out[$key] = $a[$key] %op «$b|$key:variable»
    return $out

@merge merge unite | a:counts c:counts -> counts
def $f($a, $c):
    '''Return a copy of $a with all entries of $c set in it.'''
    $out = dict(«$a|$c:variable»)
    $out.update(«$c|$a:variable»)
    return $out
""")

CLASSES = parse("""
@holder | a:ints b:int -> class
class $f:
    '''Hold some $a.'''

    def __init__(self, $a):
        self.$a = $a

    def total(self):
        '''Return the sum of the $a, $op $num.'''
        return sum(self.$a) %op %num

    def count(self, $b):
        '''Return how many of the $a are $cmp $b.'''
        return len([$a1 for $a1 in self.$a if $a1 %cmp $b])

@span | a:int b:int v:int -> class
class $f:
    '''Span the numbers from $a to $b.'''

    def __init__(self, $a, $b):
        self.$a = $a
        self.$b = $b

    def width(self):
        '''Return $b minus $a, $op $num.'''
        return self.«$b|$a:variable» «-|+:operator» self.$a %op %num

    def covers(self, $v):
        '''Return if $v is $above $a and $below $b.'''
        return $v %above self.$a «and|or:boolean» $v %below self.$b

@tagger | a:word b:word -> class
class $f:
    '''Hold one $a.'''

    def __init__(self, $a):
        self.$a = $a

    def loud(self):
        '''Return the $a in $case, then $sep.'''
        return self.$a.%case() + %sep

    def glue(self, $b):
        '''Return the $a, then $sep, then $b.'''
        return «self.$a|$b:variable» + %sep + $b

@keeper | a:counts b:word c:int -> class
class $f:
    '''Hold the values of $a.'''

    def __init__(self, $a):
        self.$a = $a

    def value(self, $b):
        '''Return the value of $b, or $num if it has none.'''
        return self.$a.get($b, %num)

    def keys(self, $c):
        '''Return the keys with a value $cmp $c, in order.'''
        return [$key for $key in self.$a if self.$a[$key] %cmp $c]

@counter | a:int b:int -> class
class $f:
    '''Start from $a.'''

    def __init__(self, $a):
        self.$a = $a

    def after(self, $b):
        '''Return $a $op $b, $opb $num.'''
        return self.$a %op $b %opb %num

    def enough(self, $b):
        '''Return whether $a is $cmp $b.'''
        return self.$a %cmp $b

@ranker | a:words b:letter -> class
class $f:
    '''Hold the $a.'''

    def __init__(self, $a):
        self.$a = $a

    def pick(self, $b):
        '''Return the $a that $edge with $b, in order.'''
        return [$a1 for $a1 in self.$a if $a1.%edge($b)]

    def line(self):
        '''Return the $a joined with $sep.'''
        return %sep.join(self.$a)
""")
